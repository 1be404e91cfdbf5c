"""Samplers against known answers, and mistakes that must be caught."""
