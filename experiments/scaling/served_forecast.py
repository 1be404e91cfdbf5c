"""The cost of a run over a server: rollouts, steps and tokens."""

import math
from collections.abc import Sequence
from typing import Any

from tsi.engine.methods import plan_of
from tsi.errors import CapabilityError, ConfigurationError
from tsi.experiments.scaling.methods import get_method, sampler_of
from tsi.experiments.scaling.report import markdown
from tsi.experiments.scaling.token_bounds import most_tokens
from tsi.experiments.worlds.world import World
from tsi.explore import check_needs
from tsi.explorer import Explorer

HEAD = ("", "N", "problems", "steps at most", "tokens at most")


def refusal_of(world: World, method: str, budget: int) -> str:
    """Why a method cannot run over the server of a world; empty if it can."""
    engine: Any = world.engine
    entry = get_method(method)
    sampler = sampler_of(method, world.max_steps)
    try:
        if entry.proposal_temperature is not None:
            raise CapabilityError(
                f"{entry.label} proposes at another temperature, and a server gives "
                "the probabilities of one."
            )
        if isinstance(sampler, Explorer):
            check_needs(sampler, engine.policy.abilities.store(engine.controls))
        engine.check_fits(sampler, budget)
    except (CapabilityError, ConfigurationError) as error:
        return str(error)
    return ""


def served_line(
    world: World,
    runs: Sequence[tuple[str, int, int]],
) -> tuple[str, str, list[str]]:
    """A table of runs, the sentence that a real run prints too, and refusals.

    Args:
        world: whose policy is behind a server.
        runs: method, budget and number of problems of each.
    """
    engine: Any = world.engine
    lines, refusals = [[*HEAD]], []
    rollouts, max_tokens, expected_tokens = 0, 0, 0.0
    for method, budget, problems in runs:
        if problems == 0:
            continue
        label = get_method(method).label
        if refusal := refusal_of(world, method, budget):
            refusals.append(refusal)
            lines.append([label, f"{budget:,}", f"{problems:,}", "refused", "refused"])
            continue
        sampler = sampler_of(method, engine.limits.max_steps)
        plan = plan_of(sampler, budget, engine.limits.max_steps)
        steps = problems * plan.rows * plan.turns
        tokens = most_tokens(get_method(method), plan, engine.limits, problems)
        each = math.nan if world.typical_tokens is None else world.typical_tokens()
        each = min(each, float(engine.limits.max_tokens))
        rollouts, max_tokens = rollouts + problems * budget, max_tokens + tokens
        expected_tokens += min(steps * each / engine.limits.max_steps, float(tokens))
        lines.append(
            [label, f"{budget:,}", f"{problems:,}", f"{steps:,}", f"{tokens:,}"]
        )
    if rollouts == 0 and not refusals:
        return markdown(lines), "All rows exist.", refusals
    about = (
        f"about {expected_tokens:,.0f} and " if math.isfinite(expected_tokens) else ""
    )
    line = (
        f"{len(world.problems):,} problems, {rollouts:,} rollouts over "
        f"{engine.policy.name}: {about}at most {max_tokens:,} generated tokens"
    )
    price = engine.price
    if price is not None:
        expected = expected_tokens if math.isfinite(expected_tokens) else max_tokens
        bound = "" if math.isfinite(expected_tokens) else "at most "
        line += f", {bound}{price * expected / 1e6:,.2f} at {price:g} per million"
    return markdown(lines), line + ".", refusals
