"""What drives the compiled programs: training loops over dm_control and over MJX, and their evaluations."""
