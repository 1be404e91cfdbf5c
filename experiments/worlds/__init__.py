"""A task with the models that work on it, from names on a command line."""
