"""Measurements of a run: seconds, compiled programs, bytes."""
