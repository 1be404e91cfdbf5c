"""A task with its models, from names on a command line."""
