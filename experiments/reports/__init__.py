"""Curves, comparisons, tables and figures of finished rows."""
