"""Promises of the explorer contract: requests that can be met, runs that end."""

import jax
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.robustness import Check
from tsi.bench.source_lines import blamed
from tsi.explore import explore
from tsi.explorer import Explorer
from tsi.targets.examples import smooth, unequal_lengths
from tsi.targets.tabular import TabularTarget

NUM_RUNS = 200


def request_checks(
    explorer: Explorer, num_particles: int, key: Key[Array, ""]
) -> list[Check]:
    """Whether requests are valid, runs end in time, and members are solutions."""
    for target in (smooth(), unequal_lengths()):
        broken, ended, parts = _judge(explorer, target, num_particles, key)
        if broken or ended:
            break
    kept = "valid, and each prefix grows by one"
    in_time = "done within the turns of the plan"
    where = blamed(explorer, *parts)
    return [
        Check("requests", not broken, broken or kept, where if broken else ""),
        Check("ending", not ended, ended or in_time, where if ended else ""),
    ]


def _judge(
    explorer: Explorer, target: TabularTarget, num_particles: int, key: Key[Array, ""]
) -> tuple[str, str, tuple[str, ...]]:
    """What is wrong with requests, or with the end, and the functions to look at."""
    plan = explorer.plan(num_particles, target.max_steps)
    keys = jax.random.split(key, NUM_RUNS)
    many = jax.jit(jax.vmap(lambda k: explore(explorer, target, k, num_particles)))
    exploration, infos = many(keys)
    state = exploration.state
    parents, members = np.asarray(infos.parents), np.asarray(state.members)
    if parents.dtype != np.int32 or parents.shape[1:] != (plan.turns, plan.rows):
        return f"parents are {parents.dtype} of shape {parents.shape[1:]}", "", ("ask",)
    for name, places, parts in (
        ("parents", parents, ("ask",)),
        ("members", members, ("tell", "ask")),
    ):
        if places.min() < 0 or places.max() >= plan.stored:
            return f"{name} outside [0, {plan.stored})", "", parts
    if np.asarray(infos.slots).min() < 0:
        return "slots below zero", "", ("ask",)
    if not np.asarray(state.done).all():
        late = f"not done after the {plan.turns} turns of its plan"
        return "", late, ("tell", "plan")
    finished = np.asarray(state.finished)
    lengths = np.take_along_axis(np.asarray(exploration.depths), members, axis=1)
    solutions = np.take_along_axis(
        np.asarray(exploration.stored.finished), members, axis=1
    )
    if (finished & ~solutions).any():
        return "", "a member that is called finished is not", ("tell",)
    if (finished & (lengths == 0)).any():
        return "", "a member that is called finished has no steps", ("tell",)
    return "", "", ()
