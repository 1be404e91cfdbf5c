"""A policy, a reward and a step boundary as a target."""
