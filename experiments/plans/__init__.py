"""Methods by name, and plans: which methods, budgets, seeds and problems are run."""
