"""Policies and rewards behind an inference server, and the engine that drives them."""
