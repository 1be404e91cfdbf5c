"""Conformance checks of samplers and of targets, against known answers."""
