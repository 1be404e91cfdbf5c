"""The scaling experiment: it runs a plan and writes its rows."""
