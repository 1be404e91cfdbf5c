"""Benchmarks of models and the engine, compared with ceilings and other software."""
