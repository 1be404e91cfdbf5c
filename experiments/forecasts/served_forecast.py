"""The cost of a run over a server: rollouts, steps and tokens."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tsi.engine.methods import plan_of
from tsi.errors import CapabilityError, ConfigurationError
from tsi.experiments.forecasts.token_bounds import (
    Reading,
    longest_prefix,
    most_tokens,
    tokens_read,
)
from tsi.experiments.plans.method_list import Method
from tsi.experiments.plans.methods import get_method, particles_per_run, sampler_of
from tsi.experiments.reports.report import markdown
from tsi.experiments.worlds.world import World
from tsi.serving.served_judge import ServedJudge
from tsi.serving.served_prm import ServedPrm

HEAD = (
    *("", "N", "problems"),
    *("steps at most", "tokens at most", "tokens read at most"),
)


def refusal_of(world: World, method: str, budget: int) -> str:
    """Why a method cannot run over the server of a world; empty if it can."""
    engine: Any = world.engine
    entry = get_method(method)
    sampler = sampler_of(method, world.max_steps)
    try:
        if entry.fixes_proposal:
            raise CapabilityError(fixed_proposal_refusal(entry))
        controls = engine.controls.change(entry.temperature, None)
        engine.check_needs(sampler, controls)
        size = particles_per_run(method, budget, world.num_islands)
        engine.check_fits(sampler, size)
    except (CapabilityError, ConfigurationError) as error:
        return str(error)
    return ""


def fixed_proposal_refusal(method: Method) -> str:
    """Why a method with its own proposal cannot run over a server."""
    return (
        f"{method.label} is a published procedure that proposes at another temperature "
        "than the policy's, and a server gives the probabilities of one. Use "
        "power_sampling, whose target is the same with every proposal."
    )


def reading_of(world: World) -> Reading:
    """How the servers of a world read prompts, and a judge its texts.

    A reward model behind a server has no question, and reads every text anew.
    """
    engine: Any = world.engine
    scorer = engine.scorer
    prompts = [len(engine.encode_problem(problem)) for problem in world.problems]
    prompt = math.fsum(prompts) / max(len(prompts), 1)
    reading = Reading(prompt, engine.policy.abilities.reuses_prompts)
    if isinstance(scorer, ServedJudge):
        is_cached = scorer.judge.abilities.reuses_prompts
        return reading._replace(
            question=scorer.question_tokens,
            judge_is_cached=is_cached,
            judge_is_apart=scorer.address is not None,
        )
    return reading._replace(question=0) if isinstance(scorer, ServedPrm) else reading


class Totals(NamedTuple):
    """Tokens of a forecast.

    Attributes:
        generated, sent, judged: that are written, read to draw steps, and read to judge
            them.
    """

    generated: float = 0.0
    sent: float = 0.0
    judged: float = 0.0

    def plus(self, generated: float, read: tuple[float, float]) -> "Totals":
        """These tokens and others."""
        sent, judged = read
        return Totals(
            self.generated + generated, self.sent + sent, self.judged + judged
        )


def forecast_served_runs(
    world: World,
    runs: Sequence[tuple[str, int, int]],
) -> tuple[str, str, list[str]]:
    """Forecast runs: a table, the sentence that a real run prints too, and refusals.

    Args:
        world: whose policy is behind a server.
        runs: method, budget and number of problems of each.
    """
    engine: Any = world.engine
    limits, reading = engine.limits, reading_of(world)
    lines, refusals = [[*HEAD]], []
    rollouts, bound_totals, typical_totals = 0, Totals(), Totals()
    for method, budget, problems in runs:
        if problems == 0:
            continue
        label = get_method(method).label
        if refusal := refusal_of(world, method, budget):
            refusals.append(refusal)
            refused = ["refused"] * (len(HEAD) - 3)
            lines.append([label, f"{budget:,}", f"{problems:,}", *refused])
            continue
        sampler = sampler_of(method, limits.max_steps)
        plan = plan_of(sampler, budget, limits.max_steps)
        steps = problems * plan.rows * plan.turns
        tokens = most_tokens(get_method(method), plan, limits, problems)
        prefix, step = longest_prefix(plan, limits), min(tokens / steps, float(tokens))
        read = tokens_read(reading, problems, steps, prefix, step)
        solution_tokens = (
            math.nan if world.typical_tokens is None else world.typical_tokens()
        )
        solution_tokens = min(solution_tokens, float(limits.max_tokens))
        drawn_tokens = min(steps * solution_tokens / limits.max_steps, float(tokens))
        rollouts, bound_totals = (
            rollouts + problems * budget,
            bound_totals.plus(float(tokens), read),
        )
        typical_totals = typical_totals.plus(
            drawn_tokens,
            tokens_read(
                reading, problems, steps, solution_tokens / 2, drawn_tokens / steps
            ),
        )
        numbers = (budget, problems, steps, tokens, round(math.fsum(read)))
        lines.append([label, *(f"{number:,}" for number in numbers)])
    if rollouts == 0 and not refusals:
        return markdown(lines), "All rows exist.", refusals
    is_known = math.isfinite(typical_totals.generated)
    about = f"about {typical_totals.generated:,.0f} and " if is_known else ""
    line = (
        f"{len(world.problems):,} problems, {rollouts:,} rollouts over "
        f"{engine.policy.name}: {about}at most "
        f"{bound_totals.generated:,.0f} generated tokens"
    )
    expected, bound = (
        (typical_totals, "about ") if is_known else (bound_totals, "at most ")
    )
    judged = "" if reading.question is None else f" and {expected.judged:,.0f} to judge"
    cache = "beyond its cache" if reading.is_cached else "without a cache"
    line += f", {bound}{expected.sent:,.0f} tokens read to draw steps ({cache}){judged}"
    if engine.prices is not None:
        read_tokens = expected.sent + expected.judged
        cost = engine.prices.cost(expected.generated, read_tokens)
        line += f", {bound}{cost:,.2f} at {engine.prices}"
    return markdown(lines), line + ".", refusals
