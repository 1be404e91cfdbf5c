"""Statistics of accuracies: pure functions of numpy arrays."""
