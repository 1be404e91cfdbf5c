"""Checks of samplers against known answers, and mistakes that the checks must find."""
