"""How many rows and blocks, and in which shapes programs are compiled."""
