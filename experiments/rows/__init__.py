"""Rows and kept particles: how results are written, resumed, read and graded again."""
