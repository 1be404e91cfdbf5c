"""The compiled programs of an engine; none of them knows the sampler."""
