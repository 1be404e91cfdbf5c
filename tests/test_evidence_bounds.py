"""Bounds from both sides, around an evidence that enumeration knows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi.errors import CapabilityError
from tsi.samplers.evidence_bounds import evidence_bounds
from tsi.samplers.parts.potentials import product, telescoping
from tsi.targets.examples import peaked, smooth, unequal_lengths
from tsi.targets.tabular import TabularParticles

NUM_RUNS = 10_000


def exact_samples(target, truth, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(truth.posterior), NUM_RUNS, p=truth.posterior)
    symbols = jnp.asarray(truth.symbols[rows])
    lengths = jnp.sum(symbols >= 0, axis=1)
    done = jnp.ones((NUM_RUNS, 1), bool)
    return TabularParticles(symbols[:, None], lengths[:, None], done)


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "potential"),
    [(smooth, telescoping()), (peaked, product()), (unequal_lengths, product())],
    ids=["smooth, last", "peaked, all", "unequal lengths, all"],
)
def test_means_are_on_both_sides_and_the_inverse_is_unbiased(make, potential):
    target = make()
    truth = target.truth(potential.path_log_weight)
    exact = exact_samples(target, truth)
    keys = jax.random.split(jax.random.key(0), NUM_RUNS)
    bounds = jax.jit(
        jax.vmap(lambda k, e: evidence_bounds(target, k, e, 8, potential=potential))
    )(keys, exact)
    lower, upper = (np.asarray(bound, np.float64) for bound in bounds)

    def error(values):
        return values.std() / np.sqrt(NUM_RUNS)

    assert lower.mean() + 4 * error(lower) < truth.log_evidence
    assert upper.mean() - 4 * error(upper) > truth.log_evidence
    inverse = np.exp(truth.log_evidence - upper)
    assert abs(inverse.mean() - 1.0) < 4 * error(inverse)
    assert error(inverse) < 0.02


def test_a_target_without_replay_is_refused():
    class Plain:
        max_steps = 4

        def __init__(self):
            self.inner = smooth()
            for name in ("init", "propose", "log_potential", "finished", "gather"):
                setattr(self, name, getattr(self.inner, name))

    exact = jax.tree.map(
        lambda leaf: leaf[0],
        exact_samples(smooth(), smooth().truth(product().path_log_weight)),
    )
    with pytest.raises(CapabilityError, match="`replay`"):
        evidence_bounds(Plain(), jax.random.key(0), exact, 4)
