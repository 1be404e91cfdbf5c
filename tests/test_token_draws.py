"""A logit that is not a number is seen in log p, however tokens are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi.decoding.token_draws import (
    Temperatures,
    log_prob_of,
    sample_among,
    sample_token,
)
from tsi.decoding.truncation import Truncation

LOGITS = np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32)
PARTLY, WHOLLY = LOGITS.copy(), LOGITS.copy()
PARTLY[1, 7] = np.nan
WHOLLY[1] = np.nan
TRUNCATIONS = {
    "none": None,
    "top-k": Truncation(top_k=3).as_arrays(),
    "top-p": Truncation(top_p=0.5).as_arrays(),
    "min-p": Truncation(min_p=0.3).as_arrays(),
}


@pytest.mark.parametrize("logits", [PARTLY, WHOLLY], ids=["one logit", "all logits"])
@pytest.mark.parametrize("truncation", TRUNCATIONS.values(), ids=TRUNCATIONS)
@pytest.mark.parametrize("policy", [0.0, 0.7])
@pytest.mark.parametrize("proposal", [None, 1.3])
def test_log_p_is_nan_in_the_rows_of_such_logits_alone(
    logits, truncation, policy, proposal
):
    keys = jax.random.split(jax.random.key(0), 3)
    temperatures = Temperatures(
        jnp.float32(policy),
        None if proposal is None else jnp.float32(proposal),
        truncation,
    )
    is_bad = [False, True, False]
    token, log_p, _ = sample_token(keys, jnp.asarray(logits), temperatures)
    assert np.isnan(log_p).tolist() == is_bad
    replayed = log_prob_of(
        jnp.asarray(logits), token, temperatures.policy, temperatures.truncation
    )
    assert np.isnan(replayed).tolist() == is_bad
    allowed = jnp.arange(20) % 2 == 0
    _, log_p, _ = sample_among(
        keys, jnp.asarray(logits), jnp.tile(allowed, (3, 1)), temperatures
    )
    assert np.isnan(log_p).tolist() == is_bad
