"""Checks of the explorer contract: valid requests, and runs that end."""

import jax
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.robustness import Check
from tsi.bench.source_lines import places_of_functions
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
        violation, ending, parts = _judge(explorer, target, num_particles, key)
        if violation or ending:
            break
    valid = "valid, and each prefix grows by one"
    in_time = "done within the turns of the plan"
    where = places_of_functions(explorer, *parts)
    return [
        Check(
            "requests", not violation, violation or valid, where if violation else ""
        ),
        Check("ending", not ending, ending or in_time, where if ending else ""),
    ]


def _judge(
    explorer: Explorer, target: TabularTarget, num_particles: int, key: Key[Array, ""]
) -> tuple[str, str, tuple[str, ...]]:
    """Faults of requests and of the end, and the functions that may cause them."""
    plan = explorer.plan(num_particles, target.max_steps)
    keys = jax.random.split(key, NUM_RUNS)
    run_many = jax.jit(jax.vmap(lambda k: explore(explorer, target, k, num_particles)))
    exploration, infos = run_many(keys)
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
        ending = f"not done after the {plan.turns} turns of its plan"
        return "", ending, ("tell", "plan")
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
