"""A file per model family: what its configuration means, how its weights are named."""
