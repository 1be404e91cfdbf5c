"""Twisted targets, and exact and learned twists."""
