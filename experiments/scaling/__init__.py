"""The scaling experiment: plans, rows, statistics and reports."""
