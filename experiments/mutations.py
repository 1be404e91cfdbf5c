"""Typical mistakes, made in every sampler on purpose: the bench must catch each one.

Claim: a sampler with one of the mistakes below breaks a promise of
`tsi.conformance`. Expected: no mistake is missed. Cost: 10 to 20 minutes on 2 cores.
Command: ``python -m tsi.experiments.mutations``. A mistake is made by wrapping the
sampler, so that it is the same mistake in all of them.

- dropped correction: log p - log q is ignored;
- wrong ancestor: the children are those of the neighbour;
- late reward: each turn is weighed by the potentials of the turn before;
- reused key: one key for every turn;
- weights not reset: offspring keep the weights that they were drawn by.

A mistake does not exist everywhere: who draws no random number reuses no key, who never
resamples resets no weight, one particle has no neighbour, and a search without a target
is not wrong about it. Those are named in the table, with the reason.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from tsi.conformance import checks_of, known_targets
from tsi.experiments.claims import CLAIMS, Claim
from tsi.experiments.command import exit_code
from tsi.experiments.report import markdown
from tsi.explorer import Explorer, Reply, Request
from tsi.models.files import check_writable, write_text
from tsi.sampler import Sampler
from tsi.samplers.population import SMCState

Mistake = Callable[[Sampler | Explorer], Sampler | Explorer]


class Remembering(NamedTuple):
    """A sampler's state with something that it should not have kept."""

    inner: Any
    memory: Any

    @property
    def log_weights(self) -> Any:
        """Of the sampler."""
        return self.inner.log_weights

    @property
    def log_evidence(self) -> Any:
        """Of the sampler."""
        return self.inner.log_evidence

    @property
    def log_potentials(self) -> Any:
        """Of the sampler."""
        return self.inner.log_potentials

    @property
    def finished(self) -> Any:
        """Of the sampler."""
        return self.inner.finished

    @property
    def members(self) -> Any:
        """Of the sampler."""
        return self.inner.members

    @property
    def done(self) -> Any:
        """Of the sampler."""
        return self.inner.done


def dropped_correction(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """log p - log q is ignored."""
    if isinstance(sampler, Explorer):

        def hear(key: Any, state: Any, reply: Reply) -> Any:
            zeros = jnp.zeros_like(reply.log_corrections)
            return sampler.tell(key, state, reply._replace(log_corrections=zeros))

        return sampler._replace(tell=hear)

    def tell(key: Any, state: Any, potentials: Any, corrections: Any, f: Any) -> Any:
        return sampler.tell(key, state, potentials, 0.0 * corrections, f)

    return sampler._replace(tell=tell)


def wrong_ancestor(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """The children are those of the neighbour."""

    def ask(key: Any, state: Any) -> tuple[Any, Any]:
        state, asked = sampler.ask(key, state)
        if isinstance(asked, Request):
            places = state.members.shape[0]
            return state, asked._replace(parents=(asked.parents + 1) % places)
        return state, jnp.roll(asked, 1)

    return sampler._replace(ask=ask)


def late_reward(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Each turn is weighed by the potentials of the turn before."""
    explores = isinstance(sampler, Explorer)

    def init(key: Any, num_particles: int, *limit: int) -> Remembering:
        rows = num_particles
        if isinstance(sampler, Explorer):
            rows = sampler.plan(num_particles, *limit).rows
        return Remembering(sampler.init(key, num_particles, *limit), jnp.zeros(rows))

    def ask(key: Any, state: Remembering) -> tuple[Remembering, Any]:
        inner, asked = sampler.ask(key, state.inner)
        memory = state.memory if explores else state.memory[asked]
        return Remembering(inner, memory), asked

    def tell(key: Any, state: Remembering, *told: Any) -> tuple[Remembering, Any]:
        if isinstance(told[0], Reply):
            late = (told[0]._replace(log_potentials=state.memory),)
            now = told[0].log_potentials
        else:
            late, now = (state.memory, *told[1:]), told[0]
        inner, info = sampler.tell(key, state.inner, *late)
        return Remembering(inner, now), info

    return sampler._replace(init=init, ask=ask, tell=tell)


def reused_key(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """One key for every turn."""

    def init(key: Any, *numbers: int) -> Remembering:
        return Remembering(sampler.init(key, *numbers), key)

    def ask(key: Any, state: Remembering) -> tuple[Remembering, Any]:
        inner, asked = sampler.ask(state.memory, state.inner)
        return Remembering(inner, state.memory), asked

    def tell(key: Any, state: Remembering, *told: Any) -> tuple[Remembering, Any]:
        inner, info = sampler.tell(state.memory, state.inner, *told)
        return Remembering(inner, state.memory), info

    return sampler._replace(init=init, ask=ask, tell=tell)


def weights_not_reset(sampler: Sampler | Explorer) -> Sampler | Explorer:
    """Offspring keep the weights that they were drawn by."""

    def ask(key: Any, state: Any) -> tuple[Any, Any]:
        after, asked = sampler.ask(key, state)
        return _with_old_weights(state, after), asked

    return sampler._replace(ask=ask)


def _with_old_weights(before: Any, after: Any) -> Any:
    """The state after a draw, with every population's weights as they were."""
    if isinstance(after, SMCState):
        kept = jnp.take_along_axis(before.log_weights, after.ancestors, axis=-1)
        alive = jnp.isfinite(kept) & jnp.isfinite(after.log_weights)
        change = jnp.where(alive, kept - after.log_weights, 0.0)
        return after._replace(
            log_weights=after.log_weights + change, log_base=after.log_base + change
        )
    if isinstance(after, tuple) and hasattr(after, "_replace"):
        pairs = zip(before, after, strict=True)
        return type(after)(*(_with_old_weights(b, a) for b, a in pairs))
    return after


MISTAKES: dict[str, Mistake] = {
    "dropped correction": dropped_correction,
    "wrong ancestor": wrong_ancestor,
    "late reward": late_reward,
    "reused key": reused_key,
    "weights not reset": weights_not_reset,
}


def why_not(name: str, claim: Claim, mistake: str) -> str | None:
    """Why a mistake cannot be made in a sampler; None if it can."""
    sampler = claim.make()
    if sampler.path_log_weight is None and mistake != "reused key":
        return "no target"
    if mistake == "wrong ancestor" and claim.num_particles == 1:
        return "one particle"
    state = _population_of(sampler, claim.num_particles)
    if mistake == "weights not reset" and (state is None or name in NEVER_RESAMPLE):
        return "no weights to reset"
    if mistake == "late reward" and name in NO_REWARD:
        return "no reward"
    if mistake == "reused key" and not _draws(sampler, claim.num_particles):
        return "draws nothing"
    return None


NO_REWARD = (
    "greedy",
    "self_consistency",
    "power_sampling",
    "power_sampling, published",
)
NEVER_RESAMPLE = ("greedy", "self_consistency", "best_of_n", "weighted_best_of_n")


def _population_of(sampler: Sampler | Explorer, num_particles: int) -> Any:
    limit = (4,) if isinstance(sampler, Explorer) else ()
    state = sampler.init(jax.random.key(0), num_particles, *limit)
    is_population = lambda leaf: isinstance(leaf, SMCState)  # noqa: E731
    found = [
        x for x in jax.tree.leaves(state, is_leaf=is_population) if is_population(x)
    ]
    return found[0] if found else None


def _draws(sampler: Sampler | Explorer, num_particles: int) -> bool:
    """Whether asking or telling uses its key at all."""
    explores = isinstance(sampler, Explorer)
    limit = (4,) if explores else ()

    def turn(key: Any) -> Any:
        key_init, key_ask, key_tell = jax.random.split(key, 3)
        state = sampler.init(key_init, num_particles, *limit)
        ask = jax.make_jaxpr(sampler.ask)(key_ask, state)
        state, asked = sampler.ask(key_ask, state)
        if explores:
            numbers = jnp.zeros(asked.parents.shape[0])
            told: tuple[Any, ...] = (Reply(numbers, numbers, numbers, numbers > 1.0),)
        else:
            numbers = jnp.zeros(num_particles)
            told = (numbers, numbers, numbers > 1.0)
        tell = jax.make_jaxpr(sampler.tell)(key_tell, state, *told)
        return ask, tell

    return any(
        "random_bits" in str(j) or "random_split" in str(j)
        for j in turn(jax.random.key(0))
    )


class Verdict(NamedTuple):
    """What caught a mistake, or why it could not be made; None if it was missed."""

    caught_by: str | None
    reason: str | None = None


def judged(name: str, mistake: str, num_runs: int = 20_000) -> Verdict:
    """Make a mistake in a sampler and run the bench up to the first broken promise."""
    claim = CLAIMS[name]
    reason = why_not(name, claim, mistake)
    if reason is not None:
        return Verdict(None, reason)
    # First the targets on which mistakes show: proposals, unequal lengths.
    every = known_targets()
    first = ("unequal lengths", "peaked")
    targets = {name: every[name] for name in (*first, *(set(every) - set(first)))}
    broken = MISTAKES[mistake](claim.make())
    checks = checks_of(
        broken, targets=targets, num_particles=claim.num_particles, num_runs=num_runs
    )
    return Verdict(next((c.promise for c in checks if c.passed is False), None))


def main(out: Path = Path("results/conformance"), num_runs: int = 20_000) -> int:
    """Make every mistake in every sampler; exit code 1 if one is missed.

    Args:
        out: folder of mutations.md.
        num_runs: runs on each target.
    """
    check_writable(out / "mutations.md")
    lines = [["sampler", *MISTAKES]]
    missed = []
    began = time.perf_counter()
    for name in CLAIMS:
        cells = []
        for mistake in MISTAKES:
            verdict = judged(name, mistake, num_runs)
            if verdict.reason is not None:
                cells.append(f"({verdict.reason})")
            elif verdict.caught_by is None:
                cells.append("MISSED")
                missed.append(f"{name}: {mistake}")
            else:
                cells.append(verdict.caught_by)
        lines.append([name, *cells])
        print(f"{time.perf_counter() - began:5.0f} s  {name}: {', '.join(cells)}")
    write_text(out / "mutations.md", markdown(lines) + "\n")
    print(f"{len(missed)} missed{': ' if missed else ''}{'; '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
