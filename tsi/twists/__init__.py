"""Targets seen through a twist, and where twists come from."""
