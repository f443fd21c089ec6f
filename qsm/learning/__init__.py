"""The compiled programs of S seeds, and the loops that drive them."""
