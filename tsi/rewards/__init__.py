"""Rewards: what scores a prefix, and how a published reward model is asked."""
