"""Caches in blocks with reference counts, so that a fork copies at most one block."""
