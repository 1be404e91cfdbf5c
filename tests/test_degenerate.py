"""Every search method equals its textbook, particle for particle, under the same keys.

The textbooks are loops in plain numpy: they share the target's proposals and the keys
of `tsi.run` with the samplers, and no line of their logic.
"""

import jax
import numpy as np
import pytest

import tsi
from tsi import samplers
from tsi.targets.examples import EXAMPLES

SEEDS = range(6)
TARGETS = [make() for make in EXAMPLES.values()]
# All examples have one shape, so one program serves them with their own tables.
SHAPE = TARGETS[0]


@jax.jit
def extend(key, t, rows, ancestors, params):
    rows = SHAPE.gather(rows, ancestors)
    rows, correction = SHAPE.propose(key, t, rows, params)
    told = SHAPE.log_potential(t, rows, params)
    return rows, correction, told, SHAPE.finished(rows)


class Particles:
    """N partial paths in numpy, extended by a target under the keys of `tsi.run`."""

    def __init__(self, target, key, size):
        key_init, self.key_steps = jax.random.split(key)
        self.target, self.size, self.t = target, size, 0
        self.rows = target.init(jax.random.fold_in(key_init, 1), size)
        self.score = np.zeros(size)
        self.finished = np.zeros(size, bool)
        self.tape = []

    def keys(self):
        return jax.random.split(jax.random.fold_in(self.key_steps, self.t), 3)

    def step(self, ancestors):
        """Fork, extend by one step; the log score of finished ones stays."""
        ancestors = np.asarray(ancestors)
        self.tape.append(ancestors)
        was_finished = self.finished[ancestors]
        self.rows, correction, told, finished = extend(
            self.keys()[1], self.t, self.rows, ancestors, self.target.params
        )
        told = np.asarray(told, np.float64)
        self.score = np.where(was_finished, self.score[ancestors], told)
        self.finished = was_finished | np.asarray(finished)
        self.t += 1
        correction = np.asarray(correction, np.float64)
        return was_finished, np.where(was_finished, 0.0, correction)

    @property
    def running(self):
        return self.t < self.target.max_steps and not self.finished.all()


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def textbook_best_of_n(particles):
    corrections = np.zeros(particles.size)
    while particles.running:
        corrections += particles.step(np.arange(particles.size))[1]
    return np.exp(corrections) * sigmoid(particles.score)


def textbook_beam(particles, width):
    everyone = np.arange(particles.size)
    particles.step(everyone)
    while particles.running:
        alive = everyone[np.isfinite(particles.score)]
        if len(alive) == 0:
            particles.step(everyone)
            continue
        best = sorted(alive, key=lambda i: (-particles.score[i], i))
        kept = [best[k % len(best)] for k in range(particles.size // width)]
        particles.step([i for i in kept for _ in range(width)])


def textbook_dvts(particles, width):
    particles.step(np.arange(particles.size))
    while particles.running:
        chosen = []
        for start in range(0, particles.size, width):
            tree = list(range(start, start + width))
            best = max(tree, key=lambda i: (particles.score[i], -i))
            dead = particles.score[best] == -np.inf
            chosen += tree if dead else [best] * width
        particles.step(chosen)


def textbook_rebase(particles, temperature=0.2):
    particles.step(np.arange(particles.size))
    while particles.running:
        open_slots = [i for i in range(particles.size) if not particles.finished[i]]
        balance = {i: sigmoid(particles.score[i]) / temperature for i in open_slots}
        total = sum(np.exp(b) for b in balance.values())
        width, left, children = len(open_slots), len(open_slots), {}
        for i in sorted(open_slots, key=lambda i: (-balance[i], i)):
            wanted = np.ceil(width * np.exp(balance[i]) / total - 1e-5)
            children[i] = min(int(wanted), left)
            left -= children[i]
        parents = iter([i for i in open_slots for _ in range(children[i])])
        particles.step(
            [
                i if particles.finished[i] else next(parents)
                for i in range(particles.size)
            ]
        )


def textbook_bootstrap_filter(particles):
    """Multinomial resampling at every step, by inverse cumulative weights."""
    size = particles.size
    log_evidence, weights = 0.0, np.ones(size)
    while particles.running:
        ancestors = np.arange(size)
        if particles.t > 0 and weights.any():
            cumulative = np.cumsum(weights) / weights.sum()
            uniforms = np.asarray(jax.random.uniform(particles.keys()[0], (size,)))
            ancestors = np.searchsorted(cumulative, uniforms, side="right")
        was_finished, correction = particles.step(ancestors)
        gain = np.where(was_finished, 0.0, particles.score) + correction
        weights = np.exp(gain)
        with np.errstate(divide="ignore"):
            log_evidence += np.log(weights.mean())
    return weights, log_evidence


def assert_same_particles(particles, run):
    np.testing.assert_array_equal(run.particles.symbols, particles.rows.symbols)
    assert int(run.num_steps) == particles.t
    tape = np.stack(particles.tape)
    np.testing.assert_array_equal(run.infos.ancestors[: particles.t], tape)


def each_run(make_sampler, size):
    sampler = make_sampler()
    compiled = jax.jit(lambda key, params: tsi.run(sampler, SHAPE, key, size, params))
    for target in TARGETS:
        for seed in SEEDS:
            key = jax.random.key(seed)
            yield Particles(target, key, size), compiled(key, target.params)


@pytest.mark.parametrize(("size", "width"), [(8, 4), (12, 2), (3, 4)])
def test_beam_search_is_the_textbook(size, width):
    for particles, run in each_run(lambda: samplers.beam_search(width), size):
        textbook_beam(particles, min(width, size))
        assert_same_particles(particles, run)


@pytest.mark.parametrize(("size", "width"), [(8, 4), (12, 3), (2, 4)])
def test_dvts_is_the_textbook(size, width):
    for particles, run in each_run(lambda: samplers.dvts(width), size):
        textbook_dvts(particles, min(width, size))
        assert_same_particles(particles, run)


@pytest.mark.parametrize("size", [8, 5])
def test_rebase_is_the_textbook(size):
    for particles, run in each_run(samplers.rebase, size):
        textbook_rebase(particles)
        assert_same_particles(particles, run)


def test_best_of_n_is_the_textbook():
    for particles, run in each_run(samplers.best_of_n, 8):
        weights = textbook_best_of_n(particles)
        assert_same_particles(particles, run)
        got = np.exp(np.asarray(run.state.log_weights, np.float64))
        np.testing.assert_allclose(got, weights / weights.mean(), rtol=1e-4)
        log_evidence = np.log(weights.mean())
        np.testing.assert_allclose(run.state.log_evidence, log_evidence, atol=1e-5)


def test_self_consistency_is_independent_sampling():
    for particles, run in each_run(samplers.self_consistency, 8):
        textbook_best_of_n(particles)
        assert_same_particles(particles, run)


def test_greedy_is_one_sample():
    for particles, run in each_run(samplers.greedy, 1):
        textbook_best_of_n(particles)
        assert_same_particles(particles, run)


def test_the_particle_filter_is_the_bootstrap_filter():
    for particles, run in each_run(samplers.particle_filter, 8):
        weights, log_evidence = textbook_bootstrap_filter(particles)
        assert_same_particles(particles, run)
        np.testing.assert_allclose(run.state.log_evidence, log_evidence, atol=1e-4)
        if weights.any():
            got = np.exp(np.asarray(run.state.log_weights, np.float64))
            np.testing.assert_allclose(got, weights / weights.mean(), rtol=1e-4)


def test_dvts_is_beam_search_on_islands():
    target, key = TARGETS[1], jax.random.key(3)
    islands = tsi.run(samplers.beam_search(4, num_islands=3), target, key, 12)
    trees = tsi.run(samplers.dvts(4), target, key, 12)
    np.testing.assert_array_equal(islands.infos.ancestors, trees.infos.ancestors)


def test_islands_never_mix_and_weigh_by_their_own_evidence():
    target = TARGETS[1]
    sampler = samplers.smc(schedule=samplers.every_step, num_islands=4)
    run = tsi.run(sampler, target, jax.random.key(0), 16)
    ancestors = np.asarray(run.infos.ancestors)
    np.testing.assert_array_equal(ancestors // 4, np.tile(np.arange(16) // 4, (4, 1)))
