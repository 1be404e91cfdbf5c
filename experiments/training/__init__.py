"""Training of the embedded models, of reward models and of value heads."""
