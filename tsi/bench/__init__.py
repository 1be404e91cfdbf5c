"""The bench: checks of samplers and targets that `tsi.conformance` puts together."""
