"""Append-only files, compressed or of JSON lines, and the places to write them."""
