"""Mutation tests: the bench must find typical mistakes in every sampler.

Claim: a sampler with one of the mistakes below breaks a promise of
`tsi.bench.conformance`. Expected: no mistake is missed. Cost: 30 to 90 minutes on 2
cores. Command: ``python -m tsi.experiments.proofs.mutations``. Each row is written when
it is complete, and the command continues where it stopped, if the code is still the
same. Each mistake is a wrapper, so it is the same mistake in every sampler.

- dropped correction: log p - log q is ignored;
- wrong ancestor: the ancestor of the neighbouring particle is extended;
- late reward: each turn is weighted by the potentials of the previous turn;
- reused key: one key is used for all turns;
- weights not reset: offspring keep the weights with which they were drawn;
- not reset from 5: the same, from step 5 on;
- bfloat16: log potentials are rounded to 8 bits;
- clipped: log potentials are clipped to [-20, 20];
- last score: a finishing particle is weighted by 1.5 times its log potential;
- counts of 0: invalid potentials and lost populations are not counted;
- equal keys: a number is drawn with a key that is used elsewhere;
- late key: no turn after the sixth has a new key;
- clipped correction: log p - log q is clipped to [-20, 20];
- floored correction: a log correction of -inf counts as -60;
- one percent: the evidence is one per cent too large;
- mean of the living: the evidence leaves out dead particles;
- light dropped: weights below exp(-16) of the largest are zero;
- naive sum: ancestors are drawn by a cumulative sum in float32.

Some mistakes do not apply to some samplers: without random numbers no key is reused,
without resampling no weight is reset, one particle has no neighbour, and a search has
no target. The table gives the reason in these cases.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float

from tsi import samplers
from tsi.bench.conformance import checks_of
from tsi.bench.long_tables import NUM_STEPS
from tsi.errors import UnknownNameError
from tsi.experiments.command import exit_code
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.proofs import mistakes, quiet_mistakes
from tsi.experiments.proofs.claims import CLAIMS, Claim
from tsi.experiments.reports.report import markdown
from tsi.experiments.worlds.provenance import versions
from tsi.explorer import Explorer, Reply
from tsi.models.files import check_writable, write_text
from tsi.sampler import Sampler
from tsi.samplers.parts.population import SMCState

MISTAKES: dict[str, mistakes.Mistake] = {
    "dropped correction": mistakes.dropped_correction,
    "wrong ancestor": mistakes.wrong_ancestor,
    "late reward": mistakes.late_reward,
    "reused key": mistakes.reused_key,
    "weights not reset": mistakes.weights_not_reset,
    "not reset from 5": quiet_mistakes.weights_not_reset_from_step_5,
    "bfloat16": quiet_mistakes.potentials_in_bfloat16,
    "clipped": quiet_mistakes.clipped_potentials,
    "last score": quiet_mistakes.last_score_twice,
    "counts of 0": quiet_mistakes.counts_of_zero,
    "equal keys": quiet_mistakes.equal_keys,
    "late key": quiet_mistakes.late_key,
    "clipped correction": quiet_mistakes.clipped_corrections,
    "floored correction": quiet_mistakes.floored_corrections,
    "one percent": quiet_mistakes.evidence_one_percent_off,
    "mean of the living": quiet_mistakes.mean_of_the_living,
    "light dropped": quiet_mistakes.light_particles_dropped,
}

NAIVE_SUM = "naive sum"
MISSED = "MISSED"
SMALL = ("target, unequal lengths", "target, peaked", "target, impossible prefixes")
LONG = ("target, long", "target, wide", "target, long, unequal lengths")
FIRST: dict[str, tuple[str, ...]] = {
    "reused key": ("keys",),
    "equal keys": ("keys",),
    "late key": ("keys",),
    "clipped correction": ("shift",),
    "floored correction": ("zero weights",),
    "not reset from 5": LONG,
    "bfloat16": ("shift", "target, wide"),
    "clipped": ("shift", "target, wide"),
    "counts of 0": ("counts",),
    "light dropped": ("draws",),
    NAIVE_SUM: ("draws",),
    "mean of the living": ("target, impossible prefixes", "target, wide"),
    "one percent": ("target, mild",),
}
"""Promises that are checked first, to save time; otherwise `SMALL`."""

NAIVE: dict[str, Callable[..., Sampler | Explorer]] = {
    "particle_filter": samplers.particle_filter,
    "smc": samplers.smc,
    "smc, 2 islands": lambda resampling: samplers.smc(
        num_islands=2, resampling=resampling
    ),
    # By default neither draws by weights that differ much.
    "annealed_resampling": lambda resampling: samplers.annealed_resampling(
        (1.0,), resampling=resampling
    ),
    "island_exchange": samplers.island_exchange,
    "pruning": lambda resampling: samplers.pruning(1e-6, resampling=resampling),
    "twisted_smc": samplers.twisted_smc,
}
"""Constructors that take a resampling scheme, for `NAIVE_SUM`."""

NO_REWARD = (
    "greedy",
    "self_consistency",
    "power_sampling",
    "power_sampling_released",
    "power_sampling_printed",
    "power_smc",
)
NEVER_RESAMPLE = ("greedy", "self_consistency", "best_of_n", "weighted_best_of_n")
ABOUT_REWARDS = ("late reward", "bfloat16", "clipped", "last score", "counts of 0")
CHANGES: dict[str, Callable[[Any], Any]] = {
    "bfloat16": quiet_mistakes.round_to_bfloat16,
    "clipped": quiet_mistakes.clip,
}
"""Mistakes that replace each log potential by a function of it."""
SMALLEST_CHANGE = 0.005
"""The smallest relative change of a weight that the bench must find: it finds a bias of
1 %."""
ABOUT_RESETS = ("weights not reset", "not reset from 5")
ABOUT_KEYS = ("reused key", "equal keys", "late key")


def find_reason(name: str, claim: Claim, mistake: str) -> str | None:
    """Why a mistake does not apply to a sampler; None if it applies."""
    sampler = claim.make()
    without_target = (*ABOUT_KEYS, "counts of 0")
    if sampler.path_log_weight is None and mistake not in without_target:
        return "no target"
    if mistake == NAIVE_SUM and name not in NAIVE:
        return "no scheme to choose"
    if mistake == "wrong ancestor" and claim.num_particles == 1:
        return "one particle"
    state = _find_population(sampler, claim.num_particles)
    if mistake in ABOUT_RESETS and (state is None or name in NEVER_RESAMPLE):
        return "no weights to reset"
    if mistake in ABOUT_REWARDS and name in NO_REWARD:
        return "no reward"
    # A key that is only split has no effect.
    uses = (
        ("random_bits",) if mistake == "late key" else ("random_bits", "random_split")
    )
    if mistake in ABOUT_KEYS and not _uses_key(sampler, claim.num_particles, uses):
        return "draws nothing"
    if mistake == "floored correction" and getattr(sampler, "power", 1.0) != 1.0:
        return "log p is -inf as well"
    return _find_weight_reason(name, sampler, mistake)


def _find_weight_reason(
    name: str, sampler: Sampler | Explorer, mistake: str
) -> str | None:
    """Why a mistake about weights does not apply to a sampler; None if it applies."""
    explores = isinstance(sampler, Explorer)
    if mistake == "light dropped" and (explores or name in NEVER_RESAMPLE):
        return "draws by no weights that it shows"
    if mistake == "mean of the living" and (explores or name in NO_REWARD):
        return "no mean that it shows"
    if mistake in CHANGES:
        scores = np.arange(-200.0, 200.0, 1 / 64)
        changed = np.asarray(CHANGES[mistake](scores))
        change = log_weights_of(sampler, changed)
        if np.abs(change - log_weights_of(sampler, scores)).max() < SMALLEST_CHANGE:
            return f"changes no weight by {100 * SMALLEST_CHANGE:g} %"
    if mistake == "light dropped":
        span = np.ptp(log_weights_of(sampler, np.array([-200.0, 200.0])))
        if span * NUM_STEPS < -quiet_mistakes.MIN_LOG_WEIGHT:
            return "has no light particles"
    return None


def log_weights_of(
    sampler: Sampler | Explorer, scores: Float[np.ndarray, "K"]
) -> Float[np.ndarray, "K"]:
    """Log weights of paths of one step with these log potentials."""
    assert sampler.path_log_weight is not None
    paths = jnp.asarray(scores, jnp.float32)[:, None]
    alive = jnp.ones(paths.shape, bool)
    return np.asarray(sampler.path_log_weight(paths, alive), np.float64)


def _find_population(sampler: Sampler | Explorer, num_particles: int) -> Any:
    limit = (4,) if isinstance(sampler, Explorer) else ()
    state = sampler.init(jax.random.key(0), num_particles, *limit)
    is_population = lambda leaf: isinstance(leaf, SMCState)  # noqa: E731
    populations = [
        x for x in jax.tree.leaves(state, is_leaf=is_population) if is_population(x)
    ]
    return populations[0] if populations else None


def _uses_key(
    sampler: Sampler | Explorer, num_particles: int, uses: Sequence[str]
) -> bool:
    """Whether `ask` or `tell` uses its key in one of these ways."""
    explores = isinstance(sampler, Explorer)
    limit = (4,) if explores else ()

    def turn(key: Any) -> Any:
        key_init, key_ask, key_tell = jax.random.split(key, 3)
        state = sampler.init(key_init, num_particles, *limit)
        ask = jax.make_jaxpr(sampler.ask)(key_ask, state)
        state, request = sampler.ask(key_ask, state)
        if explores:
            numbers = jnp.zeros(request.parents.shape[0])
            reply: tuple[Any, ...] = (Reply(numbers, numbers, numbers, numbers > 1.0),)
        else:
            numbers = jnp.zeros(num_particles)
            reply = (numbers, numbers, numbers > 1.0)
        tell = jax.make_jaxpr(sampler.tell)(key_tell, state, *reply)
        return ask, tell

    return any(
        use in str(program) for program in turn(jax.random.key(0)) for use in uses
    )


class Verdict(NamedTuple):
    """The promise that a mistake breaks, or why it does not apply; None if missed."""

    caught_by: str | None
    reason: str | None = None


def apply_mistake(name: str, mistake: str, num_runs: int = 20_000) -> Verdict:
    """Apply a mistake to a sampler and run the bench up to the first broken promise."""
    claim = CLAIMS[name]
    reason = find_reason(name, claim, mistake)
    if reason is not None:
        return Verdict(None, reason)
    if mistake == NAIVE_SUM:
        mutant = NAIVE[name](resampling=quiet_mistakes.naive_sum)
    else:
        mutant = MISTAKES[mistake](claim.make())
    checks = checks_of(
        mutant,
        num_particles=claim.num_particles,
        num_runs=num_runs,
        first=FIRST.get(mistake, SMALL),
    )
    return Verdict(next((c.promise for c in checks if c.passed is False), None))


def cell_of(verdict: Verdict) -> str:
    """What the table says of a verdict."""
    if verdict.reason is not None:
        return f"({verdict.reason})"
    return verdict.caught_by or MISSED


def main(
    out: Path = Path("results/conformance"),
    num_runs: int = 20_000,
    names: tuple[str, ...] = tuple(CLAIMS),
) -> int:
    """Apply every mistake to every sampler; exit code 1 if one is missed.

    Args:
        out: folder of mutations.md and mutations.jsonl.
        num_runs: number of runs per target.
        names: samplers of `tsi.experiments.proofs.claims.CLAIMS`; by default all.
    """
    for name in names:
        if name not in CLAIMS:
            raise UnknownNameError("sampler", name, CLAIMS)
    check_writable(out / "mutations.md")
    all_mistakes = (*MISTAKES, NAIVE_SUM)
    start = time.perf_counter()
    with AppendOnlyFile(out / "mutations.jsonl") as file:
        settings = {
            "runs": num_runs,
            "mistakes": list(all_mistakes),
            "code": versions()["code"],
        }
        rows = [
            row
            for row in map(json.loads, file.lines())
            if all(row.get(name) == value for name, value in settings.items())
        ]
        done = {row["sampler"]: row["cells"] for row in rows}
        for name in names:
            if name not in done:
                done[name] = [
                    cell_of(apply_mistake(name, mistake, num_runs))
                    for mistake in all_mistakes
                ]
                row = {"sampler": name, "cells": done[name], **settings}
                file.append(json.dumps(row).encode() + b"\n")
                # The programs of many samplers take gigabytes.
                jax.clear_caches()
            seconds = time.perf_counter() - start
            print(f"{seconds:5.0f} s  {name}: {', '.join(done[name])}", flush=True)
    lines = [["sampler", *all_mistakes], *([name, *done[name]] for name in names)]
    write_text(out / "mutations.md", markdown(lines) + "\n")
    missed = [
        f"{name}: {mistake}"
        for name in names
        for mistake, cell in zip(all_mistakes, done[name], strict=True)
        if cell == MISSED
    ]
    print(f"{len(missed)} missed{': ' if missed else ''}{'; '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
