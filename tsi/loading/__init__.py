"""Policies and rewards by name, ready for the engine."""
