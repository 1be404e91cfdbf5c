"""Several processes that share the problems of a run."""
