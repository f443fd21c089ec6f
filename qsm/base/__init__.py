"""What every room may use: mistakes told in one line, and files replaced whole."""
