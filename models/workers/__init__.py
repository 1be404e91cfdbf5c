"""Processes with limits of time and memory, for files and texts of unknown authors."""
