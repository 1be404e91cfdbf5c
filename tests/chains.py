"""How explorers are judged: many short chains, and endless ones cut off."""

import jax

from tsi.bench.conformance import Report, target_checks
from tsi.bench.robustness import (
    Programs,
    compiled_check,
    finished_check,
    zero_weight_checks,
)
from tsi.targets.examples import EXAMPLES, smooth

NUM_RUNS = 20_000


def judged(explorer, tables=EXAMPLES, num_particles=8):
    """Evidence and posterior of many runs; the tables share one program."""
    programs = Programs(explorer, num_particles, NUM_RUNS)
    targets = {name: make() for name, make in tables.items()}
    checks = []
    for index, (name, target) in enumerate(targets.items()):
        result = programs(target, jax.random.key(index))
        checks += target_checks(name, target, explorer, result)
    return Report(tuple(checks))


def other_promises(explorer, num_particles):
    """The promises of the contract that need no truth."""
    programs, key = Programs(explorer, num_particles, 500), jax.random.key(1)
    checks = [finished_check(programs, key), *zero_weight_checks(programs, key)]
    checks.append(compiled_check(programs, key, programs(smooth(), key)))
    return Report(tuple(checks))


def chain(explorer, num_moves):
    """An endless explorer that stops after so many moves."""

    def tell(key, state, reply):
        state, info = explorer.tell(key, state, reply)
        return state._replace(done=state.iteration >= num_moves), info

    def plan(num_particles, max_steps):
        plan = explorer.plan(num_particles, max_steps)
        return plan._replace(turns=plan.turns * num_moves)

    return explorer._replace(plan=plan, tell=tell)
