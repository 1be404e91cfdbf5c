"""Typical mistakes, made in every sampler on purpose: the bench must catch each one.

Claim: a sampler with one of the mistakes below breaks a promise of
`tsi.bench.conformance`. Expected: no mistake is missed. Cost: 30 to 90 minutes on 2
cores.
Command: ``python -m tsi.experiments.proofs.mutations``. A mistake is made by wrapping
the sampler, so that it is the same mistake in all of them.

- dropped correction: log p - log q is ignored;
- wrong ancestor: the children are those of the neighbour;
- late reward: each turn is weighed by the potentials of the turn before;
- reused key: one key for every turn;
- weights not reset: offspring keep the weights that they were drawn by;
- not reset from 5: the same, from step 5 on;
- bfloat16: log potentials are rounded to 8 bits;
- clipped: log potentials are clipped to 20 either way;
- last score: who finishes is weighed by 1.5 times its log potential;
- counts of 0: invalid potentials and lost populations are not counted;
- equal keys: a number is drawn from a key that equals another one;
- one percent: the evidence is one per cent too large;
- mean of the living: the evidence leaves out who has died;
- light dropped: weights below exp(-16) of the largest are zero;
- naive sum: ancestors are drawn by a cumulative sum in float32.

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

from tsi import samplers
from tsi.bench.conformance import checks_of
from tsi.errors import UnknownNameError
from tsi.experiments.command import exit_code
from tsi.experiments.proofs import mistakes, quiet_mistakes
from tsi.experiments.proofs.claims import CLAIMS, Claim
from tsi.experiments.scaling.report import markdown
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
    "one percent": quiet_mistakes.evidence_one_percent_off,
    "mean of the living": quiet_mistakes.mean_of_the_living,
    "light dropped": quiet_mistakes.light_particles_dropped,
}

NAIVE_SUM = "naive sum"
SMALL = ("target, unequal lengths", "target, peaked", "target, impossible prefixes")
LONG = ("target, long", "target, wide", "target, long, unequal lengths")
FIRST: dict[str, tuple[str, ...]] = {
    "reused key": ("keys",),
    "equal keys": ("keys",),
    "not reset from 5": LONG,
    "bfloat16": ("shift", "target, wide"),
    "clipped": ("shift", "target, wide"),
    "counts of 0": ("counts",),
    "light dropped": ("draws",),
    NAIVE_SUM: ("draws",),
    "mean of the living": ("target, impossible prefixes", "target, wide"),
    "one percent": ("target, mild",),
}
"""Promises to look at first, which save time and decide nothing; else `SMALL`."""

NAIVE: dict[str, Callable[..., Sampler | Explorer]] = {
    "particle_filter": samplers.particle_filter,
    "smc": samplers.smc,
    "smc, 2 islands": lambda resampling: samplers.smc(
        num_islands=2, resampling=resampling
    ),
    "annealed_resampling": samplers.annealed_resampling,
    "island_exchange": samplers.island_exchange,
    "pruning": lambda resampling: samplers.pruning(0.7, resampling=resampling),
    "twisted_smc": samplers.twisted_smc,
}
"""Constructors that take a resampling scheme, for the mistake that is one."""

NO_REWARD = (
    "greedy",
    "self_consistency",
    "power_sampling",
    "power_sampling_released",
    "power_sampling_printed",
)
NEVER_RESAMPLE = ("greedy", "self_consistency", "best_of_n", "weighted_best_of_n")
ABOUT_REWARDS = ("late reward", "bfloat16", "clipped", "last score", "counts of 0")
ABOUT_RESETS = ("weights not reset", "not reset from 5")
ABOUT_KEYS = ("reused key", "equal keys")


def why_not(name: str, claim: Claim, mistake: str) -> str | None:
    """Why a mistake cannot be made in a sampler; None if it can."""
    sampler = claim.make()
    anywhere = (*ABOUT_KEYS, "counts of 0")
    if sampler.path_log_weight is None and mistake not in anywhere:
        return "no target"
    if mistake == NAIVE_SUM and name not in NAIVE:
        return "no scheme to choose"
    if mistake == "wrong ancestor" and claim.num_particles == 1:
        return "one particle"
    state = _population_of(sampler, claim.num_particles)
    if mistake in ABOUT_RESETS and (state is None or name in NEVER_RESAMPLE):
        return "no weights to reset"
    if mistake in ABOUT_REWARDS and name in NO_REWARD:
        return "no reward"
    if mistake in ABOUT_KEYS and not _draws(sampler, claim.num_particles):
        return "draws nothing"
    return _why_not_weights(name, sampler, mistake)


def _why_not_weights(
    name: str, sampler: Sampler | Explorer, mistake: str
) -> str | None:
    """Why a mistake about a sampler's weights is none in this one."""
    explores = isinstance(sampler, Explorer)
    if mistake == "light dropped" and (explores or name in NEVER_RESAMPLE):
        return "draws by no weights that it shows"
    if mistake == "mean of the living" and (explores or name in NO_REWARD):
        return "no mean that it shows"
    return None


def _population_of(sampler: Sampler | Explorer, num_particles: int) -> Any:
    limit = (4,) if isinstance(sampler, Explorer) else ()
    state = sampler.init(jax.random.key(0), num_particles, *limit)
    is_population = lambda leaf: isinstance(leaf, SMCState)  # noqa: E731
    found = [
        x for x in jax.tree.leaves(state, is_leaf=is_population) if is_population(x)
    ]
    return found[0] if found else None


def _draws(sampler: Sampler | Explorer, num_particles: int) -> bool:
    """Whether asking uses its key, or telling does."""
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
    if mistake == NAIVE_SUM:
        broken = NAIVE[name](resampling=quiet_mistakes.naive_sum)
    else:
        broken = MISTAKES[mistake](claim.make())
    checks = checks_of(
        broken,
        num_particles=claim.num_particles,
        num_runs=num_runs,
        first=FIRST.get(mistake, SMALL),
    )
    return Verdict(next((c.promise for c in checks if c.passed is False), None))


def main(
    out: Path = Path("results/conformance"),
    num_runs: int = 20_000,
    names: tuple[str, ...] = tuple(CLAIMS),
) -> int:
    """Make every mistake in every sampler; exit code 1 if one is missed.

    Args:
        out: folder of mutations.md.
        num_runs: runs on each target.
        names: samplers of `tsi.experiments.proofs.claims.CLAIMS`; all of them by
            default.
    """
    for name in names:
        if name not in CLAIMS:
            raise UnknownNameError("sampler", name, CLAIMS)
    check_writable(out / "mutations.md")
    every = (*MISTAKES, NAIVE_SUM)
    lines = [["sampler", *every]]
    missed = []
    began = time.perf_counter()
    for name in names:
        cells = []
        for mistake in every:
            verdict = judged(name, mistake, num_runs)
            if verdict.reason is not None:
                cells.append(f"({verdict.reason})")
            elif verdict.caught_by is None:
                cells.append("MISSED")
                missed.append(f"{name}: {mistake}")
            else:
                cells.append(verdict.caught_by)
        lines.append([name, *cells])
        seconds = time.perf_counter() - began
        print(f"{seconds:5.0f} s  {name}: {', '.join(cells)}", flush=True)
    write_text(out / "mutations.md", markdown(lines) + "\n")
    print(f"{len(missed)} missed{': ' if missed else ''}{'; '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
