"""Results of runs: particles, answers, cost and notes."""
