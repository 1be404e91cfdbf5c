"""The scaling experiment: plans, rows, statistics, reports."""
