"""Published variants are what was run and what was printed, particle for particle.

The textbooks are loops in plain numpy after the printed algorithms and released codes:
probabilistic-inference-scaling, its_hub, inference_scaling, reasoning-with-sampling.
They share keys and the target's proposals with the samplers, and no line of logic.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_weights import SHAPE, TARGETS, multinomial, odds_weights, softmax_weights
from test_degenerate import Particles, assert_same_particles, sigmoid

import tsi
from tsi import samplers
from tsi.samplers.parts.allocation import rebase_counts, rebase_counts_in_turn
from tsi.samplers.parts.published import EPSILON, clipped_odds


def each_run(sampler, size, seeds=6):
    compiled = jax.jit(lambda key, params: tsi.run(sampler, SHAPE, key, size, params))
    for target in TARGETS:
        for seed in range(seeds):
            key = jax.random.key(seed)
            yield Particles(target, key, size), compiled(key, target.params)


@pytest.mark.parametrize(
    ("variant", "weigh"), [("released", odds_weights), ("printed", softmax_weights)]
)
def test_finished_particles_enter_every_resampling_by_their_last_reward(variant, weigh):
    sampler = samplers.particle_filter(variant=variant)
    assert sampler.path_log_weight is None
    revived = 0
    for particles, run in each_run(sampler, 8):
        particles.step(np.arange(8))
        while particles.running:
            weights = weigh(particles.score)
            drawn = multinomial(particles.keys()[0], weights, 8)
            revived += np.sum(particles.finished[drawn] & (drawn != np.arange(8)))
            particles.step(drawn)
        assert_same_particles(particles, run)
        last = np.exp(np.asarray(run.state.log_weights, float))
        np.testing.assert_allclose(last / 8, weigh(particles.score), rtol=1e-4)
    # Finished ones were copied over others.
    assert revived > 5


def test_the_released_entropic_filter_anneals_the_odds_of_last_rewards():
    size, limit, annealed = 8, SHAPE.max_steps, 0
    sampler = samplers.entropic_particle_filter(variant="released", max_steps=8)
    for particles, run in each_run(sampler, size, seeds=16):
        particles.step(np.arange(size))
        while particles.running:
            weights = odds_weights(particles.score, 1e-7)
            ess = 1 / np.sum(np.clip(weights, 1e-7, 1 - 1e-7) ** 2)
            progress = particles.t / 8
            temperature = 1.0
            if ess / size < 0.5 and progress < 0.5:
                temperature = max(1.0, size / ess * (1 - progress))
            annealed += temperature > 1.0
            weights = weights ** (1 / temperature)
            weights /= weights.sum()
            offset = float(jax.random.uniform(particles.keys()[0]))
            positions = (np.arange(size) + offset) / size
            drawn = np.searchsorted(np.cumsum(weights), positions, side="right")
            particles.step(drawn)
        assert_same_particles(particles, run)
    assert annealed > 5
    assert sampler.select == "argmax"
    assert limit == 4


def test_rewards_are_clipped_as_in_the_code_and_impossible_prefixes_stay_so():
    told = np.array([0.0, 30.0, 50.0, np.inf, -50.0, -np.inf], np.float32)
    bound = np.log1p(-EPSILON) - np.log(EPSILON)
    got = np.asarray(clipped_odds(EPSILON)(jnp.asarray(told)))
    np.testing.assert_allclose(got, [0, 30, bound, bound, -bound, -np.inf], rtol=1e-6)
    assert bound == pytest.approx(36.04, abs=0.01)


def children_in_turn(weights, width):
    """The code's `select_softmax`, in float64."""
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    total, counts = sum(weights), [0] * len(weights)
    for i in order:
        counts[i] = math.ceil(width * weights[i] / total - 1e-9)
        width -= counts[i]
        total -= weights[i]
    return counts


def test_released_rebase_shares_out_what_is_left_among_those_left():
    weights = jnp.log(jnp.array([0.4, 0.3, 0.3]))
    assert rebase_counts_in_turn(weights, 4).tolist() == [2, 1, 1]
    assert rebase_counts(weights, 4).tolist() == [2, 2, 0]
    rng = np.random.default_rng(0)
    share = jax.jit(rebase_counts_in_turn)
    for case in range(40):
        log_weights = (rng.normal(size=9) * (1 + case % 4)).astype(np.float32)
        weights = np.exp(log_weights.astype(float)).tolist()
        width = int(rng.integers(1, 30))
        assert share(log_weights, width).tolist() == children_in_turn(weights, width)
    dead = np.full(3, -np.inf, np.float32)
    assert share(dead, 4).tolist() == [0, 0, 0]
    half = np.array([0.0, -np.inf, 0.0], np.float32)
    assert share(half, 5).tolist() == [3, 0, 2]


def test_released_rebase_is_its_code():
    for particles, run in each_run(samplers.rebase(variant="released"), 8):
        particles.step(np.arange(8))
        while particles.running:
            still = [i for i in range(8) if not particles.finished[i]]
            weights = [math.exp(sigmoid(particles.score[i]) / 0.2) for i in still]
            counts = children_in_turn(weights, len(still))
            parents = iter(np.repeat(still, counts).tolist())
            finished = particles.finished
            particles.step([i if finished[i] else next(parents) for i in range(8)])
        assert_same_particles(particles, run)
