"""Worlds: a task with its problems, engine, extractor, grader and settings."""
