"""Weights and draws of published codes, in numpy, and the tables they are tried on."""

import jax
import numpy as np
from test_degenerate import sigmoid

from tsi.targets.examples import peaked, unequal_lengths

TARGETS = [unequal_lengths(), peaked()]
SHAPE = TARGETS[0]


def odds_weights(log_odds, epsilon=2.0**-52):
    """The code's way: clip the reward, take the logit, take the softmax."""
    reward = np.clip(sigmoid(np.asarray(log_odds, float)), epsilon, 1 - epsilon)
    logits = np.log(reward) - np.log(1 - reward)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def softmax_weights(log_odds):
    weights = np.exp(sigmoid(np.asarray(log_odds, float)))
    return weights / weights.sum()


def multinomial(key, weights, size):
    uniforms = np.asarray(jax.random.uniform(key, (size,)))
    return np.searchsorted(np.cumsum(weights), uniforms, side="right")
