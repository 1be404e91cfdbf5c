"""Targets with known answers: tables, and a linear-Gaussian model."""
