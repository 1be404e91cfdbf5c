"""check_target passes every target of the package, and names what broken ones break."""

import dataclasses

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
import tiny_language as tiny

from tsi.bench.conformance import check_target
from tsi.bench.target_walk import Walker
from tsi.errors import ConfigurationError, ConformanceError
from tsi.numpyro.program import program_target
from tsi.target import where_rows
from tsi.targets.examples import unequal_lengths
from tsi.targets.linear_gaussian import LinearGaussianTarget
from tsi.targets.tabular import TabularTarget
from tsi.twists.twisted_target import TwistedTarget


def random_walk(params):
    return jnp.zeros(())


def walk_on(t, x, params):
    x = numpyro.sample("x", dist.Normal(0.8 * x, 0.6))
    numpyro.sample("y", dist.Normal(x, 0.9), obs=0.3)
    return x


def guided(t, x, params):
    numpyro.sample("x", dist.Normal(0.7 * x, 0.8))


TARGETS = {
    "table": unequal_lengths,
    "linear-Gaussian": LinearGaussianTarget,
    "twisted": lambda: TwistedTarget(
        unequal_lengths(), lambda t, p, params: 0.1 * p.length.astype(jnp.float32)
    ),
    "program": lambda: program_target(
        random_walk,
        walk_on,
        max_steps=3,
        proposal=guided,
        end=lambda t, x, params: x > 0.5,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_the_targets_of_the_package_keep_every_promise(name):
    report = check_target(TARGETS[name]())
    report.raise_if_failed()
    skipped = {check.promise for check in report.checks if check.passed is None}
    assert skipped <= {"truth"}


@pytest.mark.slow
def test_a_language_model_as_a_target_keeps_every_promise():
    target = tiny.target(max_steps=2, max_tokens=8, max_step_tokens=4)
    report = check_target(target, tiny.params("hello"), num_draws=0)
    report.raise_if_failed()
    assert "replay" in {c.promise for c in report.checks if c.passed}


def test_a_target_that_refuses_to_repeat_says_why():
    params = tiny.params("hello")._replace(proposal_temperature=jnp.float32(1.5))
    reason = Walker(tiny.target(), params, None).replay_refusal
    assert "proposal_temperature" in reason


class Table(TabularTarget):
    """The table of unequal lengths, to be broken in one method."""

    def __init__(self):
        table = unequal_lengths()
        super().__init__(
            table.initial,
            table.transition,
            table.log_potentials,
            end=table.end,
            proposal_initial=table.proposal_initial,
            proposal_transition=table.proposal_transition,
        )


class LongerPaths(Table):
    def gather(self, particles, ancestors):
        taken = super().gather(particles, ancestors)
        return taken._replace(length=taken.length.astype(jnp.float32))


class NotANumber(Table):
    def log_potential(self, t, particles, params=None):
        return jnp.log(super().log_potential(t, particles, params))


class GoesOn(Table):
    def propose(self, key, t, particles, params=None):
        unfinished = particles._replace(finished=jnp.zeros_like(particles.finished))
        return super().propose(key, t, unfinished, params)


class OneStreamForAll(Table):
    def propose(self, key, t, particles, params=None):
        size = particles.length.shape[0]
        return super().propose(jax.random.split(key, 10 + size)[size], t, particles)


class StaysAtItsPlace(Table):
    def gather(self, particles, ancestors):
        moved = super().gather(particles, ancestors)
        return moved._replace(length=particles.length)


class OneStepForAll(Table):
    def log_potential(self, t, particles, params=None):
        values = super().log_potential(t, particles, params)
        return values + 0.1 * jnp.ndim(t)


class WrongSign(Table):
    def propose(self, key, t, particles, params=None):
        after, correction = super().propose(key, t, particles, params)
        return after, -correction


class CutsOneShort(Table):
    def truncate(self, particles, depths, params=None):
        shorter = jnp.where(depths < particles.length, depths - 1, depths)
        return super().truncate(particles, jnp.maximum(shorter, 0), params)


class StaysFinished(Table):
    def truncate(self, particles, depths, params=None):
        cut = super().truncate(particles, depths, params)
        return cut._replace(finished=particles.finished)


class RepeatsWithTheProposal(Table):
    def replay(self, t, particles, sources, params=None):
        rows, _ = super().replay(t, particles, sources, params)
        gained = self.log_proposal(rows) - self.log_proposal(particles)
        return rows, gained


class NoDensityOfItsProposal(Table):
    log_proposal = None


class DrawsOfAnother(Table):
    """Proposals of one table, weighed as those of another."""

    log_proposal = replay = None

    def propose(self, key, t, particles, params=None):
        after, correction = super().propose(key, t, particles, params)
        return after, jnp.where(particles.finished, 0.0, correction + 0.2)


class AnotherTruth(Table):
    def truth(self, path_log_weight, *, power=1.0, max_steps=None):
        known = super().truth(path_log_weight, power=power)
        return known._replace(log_evidence=known.log_evidence + 0.2)


class DependsOnItsNeighbours(Table):
    def log_potential(self, t, particles, params=None):
        values = super().log_potential(t, particles, params)
        return values - jnp.mean(values)


class PairsShareNumbers(Table):
    """Neighbours draw the same step while their prefixes are equal."""

    def propose(self, key, t, particles, params=None):
        after, corrections = super().propose(key, t, particles, params)
        first = (jnp.arange(corrections.shape[0]) // 2) * 2
        same = jnp.all(particles.symbols == particles.symbols[first], axis=1)
        source = jnp.where(same, first, jnp.arange(corrections.shape[0]))
        return self.gather(after, source), corrections[source]


class HalvesShareNumbers(Table):
    """Particle i + N/2 draws with the key of particle i."""

    def propose(self, key, t, particles, params=None):
        half = particles.length.shape[0] // 2
        first = jax.tree.map(lambda leaf: leaf[:half], particles)
        second = jax.tree.map(lambda leaf: leaf[half:], particles)
        drawn = [
            super(HalvesShareNumbers, self).propose(key, t, part, params)
            for part in (first, second)
        ]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *drawn)


@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "promise"),
    [
        (LongerPaths, "shapes"),
        (NotANumber, "numbers"),
        (GoesOn, "finished"),
        (OneStreamForAll, "own numbers"),
        (DependsOnItsNeighbours, "own numbers"),
        (StaysAtItsPlace, "gather"),
        (OneStepForAll, "rows"),
        (WrongSign, "densities"),
        (NoDensityOfItsProposal, "densities"),
        (CutsOneShort, "truncate"),
        (StaysFinished, "truncate"),
        (RepeatsWithTheProposal, "replay"),
        (PairsShareNumbers, "independence"),
        (HalvesShareNumbers, "independence"),
        (DrawsOfAnother, "proposal"),
        (AnotherTruth, "truth"),
    ],
)
def test_a_broken_promise_is_named(target, promise):
    draws = 4_000 if promise in ("independence", "proposal", "truth") else 0
    report = check_target(target(), num_draws=draws)
    assert promise in {check.promise for check in report.failures}
    with pytest.raises(ConformanceError, match="The target breaks its contract"):
        report.raise_if_failed()


def test_a_finished_row_may_not_be_written_over():
    @dataclasses.dataclass
    class Restless:
        """The linear-Gaussian model with a state that walks on."""

        inner: LinearGaussianTarget
        max_steps: int = 4

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def propose(self, key, t, particles, params=None):
            after, correction = self.inner.propose(key, t, particles)
            moved = after._replace(x=after.x + 1.0)
            return where_rows(particles.length >= 4, moved, after), correction

    report = check_target(Restless(LinearGaussianTarget()), num_draws=0)
    assert {check.promise for check in report.failures} == {"finished"}


def test_one_particle_is_not_enough_to_compare():
    with pytest.raises(ConfigurationError, match="at least 2"):
        check_target(unequal_lengths(), num_particles=1)
