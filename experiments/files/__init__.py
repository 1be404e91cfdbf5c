"""Files that only grow, compressed or of JSON lines, and places to keep them."""
