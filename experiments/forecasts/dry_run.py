"""`--dry-run`: what would be run, whether it fits into memory, and what it would cost.

Only shapes are read: weights are not loaded, nothing is written and no model runs. The
length of solutions comes from worked solutions or from a pilot (``pilot.py``). The
time is FLOPs divided by a speed, which is measured with matrix products of the policy's
shape or given by the user. Attention, the host and waiting slots take further time. For
a model so small that the host is slower than the device, that is most of the time.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tsi.engine.methods import plan_of
from tsi.engine.outcome import flops_of
from tsi.engine.sizing.memory import cache_sizes, unloaded_bytes
from tsi.engine.sizing.sizes import room_of
from tsi.errors import ConfigurationError
from tsi.experiments.files.places import Place
from tsi.experiments.forecasts.device_speed import Speed, measure_speed
from tsi.experiments.forecasts.served_forecast import forecast_served_runs
from tsi.experiments.forecasts.token_bounds import most_tokens
from tsi.experiments.plans.methods import (
    MethodSettings,
    get_method,
    particles_per_run,
    sampler_of,
)
from tsi.experiments.plans.plan import ExperimentPlan, batches
from tsi.experiments.reports.report import markdown
from tsi.experiments.rows.results import known_cells
from tsi.experiments.worlds.world import World
from tsi.models.partition import processes_of
from tsi.reasoning.particles import ReasoningParams
from tsi.sampler import Sampler

HEAD = (
    *("", "N", "problems", "at once", "slots", "blocks", "bytes of blocks"),
    *("most tokens", "tokens", "FLOPs", "time"),
)
"""Header of the table; blocks and their bytes assume that rows share no blocks."""


class Run(NamedTuple):
    """A method at a budget, on problems that are run together.

    Attributes:
        method: its name.
        budget: rollouts N.
        problems: number of problems; 0 if all rows exist.
    """

    method: str
    budget: int
    problems: int


class Cost(NamedTuple):
    """The estimated cost of a run.

    Attributes:
        at_once: problems that run at the same time.
        slots: rows that write together, on all devices.
        blocks: maximum number that the working rows fill, if they share none.
        bytes: of these blocks, on all devices.
        max_tokens: maximum number that can be written.
        tokens: that will be written if solutions are as long as worked solutions; NaN
            if the length of worked solutions is not known.
        flops: for these tokens, the prompts and the reward.
        device_share: share of the devices that have work; a problem runs on one group
            of devices.
        refusal: why the run is not possible; empty if it is.
    """

    at_once: int = 0
    slots: int = 0
    blocks: int = 0
    bytes: int = 0
    max_tokens: int = 0
    tokens: float = math.nan
    flops: float = math.nan
    device_share: float = 1.0
    refusal: str = ""


class Forecast(NamedTuple):
    """What a command would do.

    Attributes:
        text: for the user.
        line: problems, rollouts, tokens, FLOPs, memory and time in one sentence, which
            a real run prints too.
        is_refused: whether some of it is not possible, so that nothing would be run.
    """

    text: str
    line: str
    is_refused: bool


def runs_of(
    plan: ExperimentPlan, world: World, path: Place, *, continue_anyway: bool = False
) -> list[Run]:
    """What a plan would run: its batches, with the problems that lack a row.

    Args:
        plan: methods, budgets and seeds.
        world: a task with its models.
        path: of the file of rows, which need not exist.
        continue_anyway: as for the run.

    Raises:
        ResultsError: the file cannot be continued.
    """
    finished_cells = known_cells(
        path,
        world.settings,
        MethodSettings(world.max_steps, is_served=world.is_served),
        continue_anyway=continue_anyway,
    )
    return [
        Run(
            batch.source,
            batch.num_particles,
            len({cell.problem for cell in batch.cells if cell not in finished_cells}),
        )
        for batch in batches(plan, world)
    ]


def cost_of(world: World, run: Run) -> Cost:
    """The estimated cost of a run, or why it is refused.

    Args:
        world: a task with its models; their weights need not be loaded.
        run: a method at a budget.
    """
    engine: Any = world.engine
    method, target = get_method(run.method), engine.target
    sampler = sampler_of(run.method, world.max_steps)
    times = 1
    if method.rounds is not None:
        times = method.rounds(run.budget).max_rounds
    elif method.is_divisible:
        times = world.num_islands
    try:
        size = particles_per_run(run.method, run.budget, world.num_islands)
        plan = plan_of(sampler, size, world.max_steps)
        if isinstance(sampler, Sampler):
            jax.eval_shape(lambda key: sampler.init(key, size), jax.random.key(0))
        engine.check_fits(sampler, size)
    except ConfigurationError as error:
        return Cost(refusal=str(error))
    if run.problems == 0:
        return Cost(tokens=0.0, flops=0.0)
    steps = run.problems * times * plan.rows * plan.turns
    max_tokens = most_tokens(method, plan, target, run.problems * times)
    typical_tokens = (
        math.nan if world.typical_tokens is None else world.typical_tokens()
    )
    typical_tokens = min(typical_tokens, float(target.max_tokens))
    tokens = min(steps * typical_tokens / world.max_steps, float(max_tokens))
    prompt = prompt_tokens(world)
    no_value: Any = None
    params = ReasoningParams(engine.policy, engine.reward_model, no_value, no_value)
    reader = target.reward.reader(params)
    context = tokens * (prompt + typical_tokens / 2)
    flops = flops_of(engine.policy.config, tokens, context, head=True)
    reads = target.reward.reads_prompts
    prompts = run.problems * times * prompt
    for config in (engine.policy.config, reader if reads else None):
        if config is not None:
            attended = prompts * config.count_attended(0, prompt) / max(prompt, 1)
            flops += flops_of(config, prompts, attended)
    # At every step a judge reads its question.
    judge_tokens = steps * getattr(target.reward, "positions_beyond", 0)
    tokens_read = judge_tokens + (tokens if reads else 0)
    if reader is not None:
        flops += flops_of(
            reader, tokens_read, tokens_read * (prompt + typical_tokens / 2)
        )
    # Islands run as problems of their own.
    runs = run.problems * (world.num_islands if method.is_divisible else 1)
    at_once = min(runs, engine.problems_at_once(sampler, size))
    groups = engine.num_groups
    sizes = engine.sizes_of(plan, -(-runs // groups), prompt)
    max_positions = prompt + target.max_tokens
    blocks = at_once * (plan.rows + plan.stored) * -(-max_positions // sizes.block)
    position_bytes = cache_sizes(target, engine.policy, engine.reward_model, 1)
    return Cost(
        at_once=at_once,
        slots=min(groups, runs) * sizes.slots,
        blocks=blocks,
        bytes=blocks * sizes.block * sum(position_bytes),
        max_tokens=max_tokens,
        tokens=tokens,
        flops=float(flops),
        device_share=min(groups, runs) / groups,
    )


def prompt_tokens(world: World) -> int:
    """Tokens of the prompt with the most characters."""
    engine: Any = world.engine
    prompts = (problem.prompt for problem in world.problems)
    return len(engine.encode(max(prompts, key=len, default="")))


def forecast(
    world: World,
    runs: Iterable[Run],
    flops_per_second: float | None = None,
    *,
    processes: int = 1,
    note: str = "",
) -> Forecast:
    """What would be run, and its cost.

    Args:
        world: with or without weights.
        runs: of this process; those of one method and budget are added up.
        flops_per_second: on all devices of all processes; measured, if None.
        processes: number of processes that work at the same time, on different
            problems.
        note: sentences before that about the cost.
    """
    engine: Any = world.engine
    counts: dict[tuple[str, int], int] = {}
    for run in runs:
        place = run.method, run.budget
        counts[place] = counts.get(place, 0) + run.problems
    runs = [Run(*place, number) for place, number in counts.items()]
    nothing_more = f"Nothing {'else ' if note else ''}has been run or written."
    if world.is_served:
        table, line, reasons = forecast_served_runs(world, runs)
        line = note + line
        paragraphs = [table, "", f"{line} {nothing_more}"]
        paragraphs += [f"Refused: {reason}" for reason in dict.fromkeys(reasons)]
        return Forecast("\n".join(paragraphs), line, bool(reasons))
    policy, target = engine.policy, engine.target
    costs = {run: cost_of(world, run) for run in runs}
    if flops_per_second is None:
        mesh = engine.mesh
        devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
        dtype = policy.trunk.dtype
        speed = measure_speed(policy.config, dtype, engine.max_rows, devices)
        # The other processes of a model have as many devices.
        speed = speed._replace(flops=speed.flops * processes_of(mesh))
    else:
        share = "" if processes == 1 else f", a share of 1/{processes}"
        speed = Speed(flops_per_second / processes, f"as stated{share}")
    lines = [[*HEAD]]
    seconds = 0.0
    for run, cost in costs.items():
        if run.problems == 0 and not cost.refusal:
            continue
        duration = cost.flops / (speed.flops * cost.device_share)
        seconds += 0.0 if cost.refusal else duration
        numbers = [
            f"{cost.at_once:,}",
            f"{cost.slots:,}",
            f"{cost.blocks:,}",
            _size(cost.bytes),
            _number(cost.max_tokens),
            _number(cost.tokens),
            _number(cost.flops),
            _duration(duration),
        ]
        if cost.refusal:
            numbers = ["refused"] * len(numbers)
        label = get_method(run.method).label
        lines.append([label, f"{run.budget:,}", f"{run.problems:,}", *numbers])
    accepted_costs = {run: cost for run, cost in costs.items() if not cost.refusal}
    line = note + _line(world, accepted_costs, seconds, processes)
    refusals = dict.fromkeys(cost.refusal for cost in costs.values() if cost.refusal)
    paragraphs = [
        *_memory(engine, target, prompt_tokens(world)),
        f"speed    {speed.flops / 1e9:,.1f} GFLOP/s ({speed.source})",
    ]
    if processes > 1:
        paragraphs.append(
            f"share    all numbers are of the first of {processes} processes, which "
            "has the largest share; all processes work at the same time"
        )
    paragraphs += [
        "",
        markdown(lines),
        "",
        f"{line} {nothing_more}",
        *(f"Refused: {reason}" for reason in refusals),
    ]
    return Forecast("\n".join(paragraphs), line, bool(refusals))


def _line(
    world: World, costs: Mapping[Run, Cost], seconds: float, processes: int
) -> str:
    """What would be run and its cost, in one sentence."""
    engine: Any = world.engine
    rollouts = sum(run.budget * run.problems for run in costs)
    if rollouts == 0:
        return "All rows exist."
    models = [_bytes_of(model) for model in (engine.policy, engine.reward_model)]
    weights = max(models) if engine.offload_weights else sum(models)
    prompt = prompt_tokens(world)
    room = room_of(prompt + engine.target.max_tokens)
    slots = max(cost.slots for cost in costs.values()) * room * engine.caches.policy
    memory = weights + slots + max(cost.bytes for cost in costs.values())
    tokens = sum(cost.tokens for cost in costs.values())
    flops = sum(cost.flops for cost in costs.values())
    share = "" if processes == 1 else f" on the first of {processes} processes"
    text = (
        f"{len(world.problems):,} problems, {rollouts:,} rollouts{share}: "
        f"{_number(tokens)} tokens, {_number(flops)} FLOPs, up to {_size(memory)} of "
        f"memory, {_duration(seconds)} or more."
    )
    if math.isfinite(tokens):
        return text
    return (
        f"{text} No worked solutions say how long a solution is; at most "
        f"{_number(sum(cost.max_tokens for cost in costs.values()))} tokens are "
        "written. A run measures it on its first problems, and --pilot 8 before it."
    )


def _memory(engine: Any, target: Any, prompt: int) -> Sequence[str]:
    """Lines about weights, free memory, rows and their caches."""
    max_positions, sizes, free_bytes = (
        prompt + target.max_tokens,
        engine.caches,
        engine.free_bytes(),
    )
    policy, reward = (_bytes_of(tree) for tree in (engine.policy, engine.reward_model))
    row = (
        f"{_size(max_positions * sum(sizes))} for a row of {max_positions:,} positions"
    )
    slots = room_of(max_positions) * sizes.policy * engine.max_rows
    beside = "after loading the weights"
    if engine.offload_weights:
        beside = "beside the larger of the two models"
    lines = [
        f"weights  {_size(policy)} of the policy, {_size(reward)} of the reward",
        f"memory   {_size(free_bytes)} free on a device {beside}",
        f"rows     at most {engine.max_rows:,} write together on a device, and "
        f"explorers store {engine.max_stored:,} prefixes",
        f"caches   {sum(sizes):,} bytes per position, {row}; slots {_size(slots)}",
    ]
    if free_bytes < 0:
        lines.append(
            f"Refused: the weights take {_size(-free_bytes)} more than is free."
        )
    return lines


def _bytes_of(tree: Any) -> int:
    arrays = (x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array | np.ndarray))
    return unloaded_bytes(tree) + sum(leaf.nbytes for leaf in arrays)


def _size(number: int) -> str:
    if abs(number) < 1e8:
        return f"{number / 1e6:,.1f} MB"
    return f"{number / 1e9:,.1f} GB"


def _number(number: int | float) -> str:
    if not math.isfinite(number):
        return "unknown"
    return f"{number:,.0f}" if number < 1e7 else f"{number:.2g}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown"
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"
