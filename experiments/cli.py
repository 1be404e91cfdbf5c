"""The command line: `tsi scale`, `solve`, `models`, `paper`, `check`.

Nothing heavy is imported before a command needs it, so that help is quick. How commands
end, and with which exit codes, stands in `command.py`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.command import exit_code
from tsi.models.files import check_writable

if TYPE_CHECKING:
    from tsi.models.catalogue import Description


RewardName = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="KIND[:MODEL]",
        help=(
            "what scores solutions; by default the task's own model, or judge for "
            "a policy of other tokens. One of: MODEL: a token head, on the "
            "policy's own tokens, or the name of a published reward model; "
            "qwen:MODEL, and math-shepherd, rlhflow, skywork, outcome: a reward "
            "model in its format; likelihood:MODEL: a larger model against the "
            "policy; value:FILE: a value head on the policy's states; judge: the "
            "policy's own judgement; verifier: the task's exact check of each "
            "prefix; outcome-verifier: the same of answers alone; none."
        ),
    ),
]
"""What scores solutions, as :mod:`tsi.experiments.named_reward` reads it."""

TemplateSwitch = tyro.conf.UseAppendAction[
    Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="NAME=JSON",
            help=(
                "a variable of the policy's chat template, as in "
                "enable_thinking=false; may be given several times."
            ),
        ),
    ]
]
"""See :func:`tsi.experiments.language_policy.parse_switches`."""


def scale(
    task: str = "chain",
    methods: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="standard|all|NAME...")
    ] = ("standard",),
    budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64),
    num_problems: int = 420,
    seeds: int = 1,
    out: Path | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    model_sampling: bool = False,
    delimiter: tuple[str, ...] = (),
    stop_string: tuple[str, ...] = (),
    min_step_tokens: int = 1,
    policy: str | None = None,
    reward: RewardName = None,
    aggregation: Literal["last", "min", "product", "mean", "model"] = "last",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    max_rows: int | None = None,
    model_parallel: int = 1,
    template_switch: TemplateSwitch = (),
    progress: bool = True,
) -> int:
    """Accuracy of methods against budget, with error bars; resumes where it stopped.

    Args:
        task: chain or countdown; models ship for both.
        methods: which to compare; standard is all but the entropic particle filter.
        budgets: rollouts N of each method.
        num_problems: held-out problems; 420 keep standard errors below 2.5 points.
        seeds: how often each problem is run.
        out: folder for rows, table and plots; results/TASK by default.
        temperature: of the policy, 1 by default.
        top_k: the policy writes its so many most likely tokens alone.
        top_p: the policy writes the fewest most likely tokens of this mass alone.
        min_p: the policy writes no token below this share of the likeliest.
        repetition_penalty: divides the logits of tokens that were read before.
        model_sampling: let the policy's generation_config.json say what of these five
            is not given.
        delimiter: strings each of which ends a step, in place of the task's own.
        stop_string: strings each of which ends the solution.
        min_step_tokens: a delimiter that comes sooner does not end the step.
        policy: another policy: a name, a hub id (organisation/name), a folder or a
            GGUF file.
        reward: what scores solutions; see :data:`RewardName`.
        aggregation: from the scores of steps to one; model shows a
            format all steps as one.
        dtype: of the models' weights.
        max_rows: particles of one batch over all its problems; by default what suits
            the device.
        model_parallel: over how many devices each model is divided; rows are
            spread over what that leaves of all devices.
        template_switch: see :data:`TemplateSwitch`.
        progress: show the bar with the time left.
    """
    from tsi.experiments.language_policy import parse_switches
    from tsi.experiments.scale import checked_plan, run_plan
    from tsi.experiments.step_ends import step_ends
    from tsi.experiments.world import embedded_world
    from tsi.experiments.write_report import write_report
    from tsi.truncation import Truncation

    plan = checked_plan(methods, budgets, seeds, 1 if max_rows is None else max_rows)
    _positive(num_problems=num_problems)
    out = out or Path("results") / task
    world = embedded_world(
        task,
        num_problems,
        policy=policy,
        reward=reward,
        aggregation=aggregation,
        temperature=temperature,
        truncation=Truncation(top_k, top_p, min_p),
        repetition_penalty=repetition_penalty,
        model_sampling=model_sampling,
        ends=step_ends(delimiter, stop_string, min_step_tokens),
        max_rows=max_rows,
        dtype=dtype,
        model_parallel=model_parallel,
        template_switches=parse_switches(template_switch),
    )
    _tell(world.notes)
    plan = plan._replace(max_rows=world.max_rows, max_stored=world.max_stored)
    rows = run_plan(plan, world, out / "rows.jsonl", progress=progress)
    print(write_report(plan, world, rows, out))
    return 0


def solve(
    prompt: Positional[str],
    method: str = "smc",
    budget: int = 16,
    task: str = "chain",
    seed: int = 0,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    model_sampling: bool = False,
    delimiter: tuple[str, ...] = (),
    stop_string: tuple[str, ...] = (),
    min_step_tokens: int = 1,
    policy: str | None = None,
    reward: RewardName = None,
    aggregation: Literal["last", "min", "product", "mean", "model"] = "last",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    model_parallel: int = 1,
    template_switch: TemplateSwitch = (),
    figures: Path | None = None,
) -> int:
    """Solve one problem and show each step's ESS, the genealogy and the answers.

    Args:
        prompt: the problem, for example "7*8+5-9".
        method: which sampler.
        budget: rollouts N.
        task: what kind of problem it is.
        seed: of the random numbers.
        temperature: of the policy, 1 by default.
        top_k: the policy writes its so many most likely tokens alone.
        top_p: the policy writes the fewest most likely tokens of this mass alone.
        min_p: the policy writes no token below this share of the likeliest.
        repetition_penalty: divides the logits of tokens that were read before.
        model_sampling: let the policy's generation_config.json say what of these five
            is not given.
        delimiter: strings each of which ends a step, in place of the task's own.
        stop_string: strings each of which ends the solution.
        min_step_tokens: a delimiter that comes sooner does not end the step.
        policy: another policy: a name, a hub id (organisation/name), a folder or a
            GGUF file.
        reward: what scores solutions; see :data:`RewardName`.
        aggregation: from the scores of steps to one; model shows a
            format all steps as one.
        dtype: of the models' weights.
        model_parallel: over how many devices each model is divided; rows are
            spread over what that leaves of all devices.
        template_switch: see :data:`TemplateSwitch`.
        figures: folder for pictures of the genealogy, of effective sample size and
            rewards by step, and of the weights; none are drawn by default.
    """
    import jax

    from tsi.experiments.language_policy import parse_switches
    from tsi.experiments.methods import get_method, sampler_of
    from tsi.experiments.scale import run_method
    from tsi.experiments.solve import solution_text
    from tsi.experiments.step_ends import step_ends
    from tsi.experiments.tasks import get_task
    from tsi.experiments.world import embedded_world
    from tsi.truncation import Truncation

    chosen = get_method(method)
    _positive(budget=budget)
    if figures is not None:
        # Refused before the work, not after it.
        check_writable(figures / "ess.png")
    problem = get_task(task).problem(prompt)
    world = embedded_world(
        task,
        [problem],
        policy=policy,
        reward=reward,
        aggregation=aggregation,
        temperature=temperature,
        truncation=Truncation(top_k, top_p, min_p),
        repetition_penalty=repetition_penalty,
        model_sampling=model_sampling,
        ends=step_ends(delimiter, stop_string, min_step_tokens),
        dtype=dtype,
        model_parallel=model_parallel,
        template_switches=parse_switches(template_switch),
    )
    _tell(world.notes)
    (result,) = run_method(world, method, jax.random.key(seed), [problem], budget)
    print(f"{problem.prompt}   {chosen.label}, N = {budget}, seed {seed}\n")
    sampler = sampler_of(method, world.max_steps)
    others, has_target = getattr(sampler, "auxiliary", ()), sampler.path_log_weight
    print(
        solution_text(
            result,
            len(others),
            has_target=has_target is not None,
            reads_reward=chosen.reads_reward,
        ),
    )
    right = world.correct(problem, result.selected)
    print(f"\nRight answer: {problem.answer} ({'solved' if right else 'not solved'})")
    if figures is not None:
        from tsi.experiments.diagnostics import save_figures

        paths = save_figures(result, figures)
        print(f"Figures: {', '.join(map(str, paths))}")
    return 0


def models(
    action: Positional[str] = "list", name: Positional[str | None] = None
) -> int:
    """List families and named models, or fetch one: `tsi models get NAME_OR_ID`.

    Args:
        action: list or get.
        name: of the model to get, or its id on the Hugging Face hub.
    """
    from tsi.models import catalogue, download

    if action == "list":
        print(_listing(catalogue.describe()))
    elif action == "get":
        if name is None:
            raise UnknownNameError("model", "", catalogue.MODELS)
        print(download.get(name))
    else:
        raise UnknownNameError("models action", action, ("list", "get"))
    return 0


def _listing(models: "list[Description]") -> str:
    """The named models family by family, with their sizes and where they lie."""
    from tsi.models.architectures import FAMILIES

    lines = []
    for family in FAMILIES:
        lines.append(f"{family}:")
        for name, model, path in models:
            if model.family == family:
                size = model.weights
                text = f"{size / 1000:.1f} B" if size >= 1000 else f"{size:g} M"
                lines.append(f"  {name:19} {text:>7}  {model.about}")
                where = path or f"not here yet: tsi models get {name}"
                lines.append(f"  {'':28} {where}")
    lines.append(
        "Other models of these families: their hub id (organisation/name), a folder "
        "or a .gguf file."
    )
    return "\n".join(lines)


def paper() -> int:
    """Scaling rates of the curves of arXiv 2502.01618, figure 2 (MATH500)."""
    from tsi.experiments.report import markdown
    from tsi.experiments.scaling_rate import paper_curves, paper_scaling_rate

    lines = [["model", "against", "mean", "least", "most", "top", "accuracies %"]]
    for model in paper_curves():
        for against in ("DVTS", "WBoN"):
            rate = paper_scaling_rate(model, "PF", against)
            ends = 100 * rate.accuracies[[0, -1]]
            numbers = (rate.mean, rate.rates.min(), rate.rates.max(), rate.top)
            lines.append(
                [
                    model,
                    against,
                    *[f"{float(number):.1f}" for number in numbers],
                    f"{ends[0]:.1f} to {ends[1]:.1f}",
                ]
            )
    print("How many times the particle filter's budget each needs for equal accuracy:")
    print(markdown(lines))
    return 0


def check(
    make_sampler: Positional[str], num_particles: int = 8, num_runs: int = 20_000
) -> int:
    """Judge a sampler by the conformance checks; exit code 1 if it fails.

    Args:
        make_sampler: "module:function"; the function returns a sampler.
        num_particles: N, a number that the sampler can use.
        num_runs: runs on each target; 20,000 notice a bias of about 2 %.
    """
    from tsi.experiments.judged_sampler import report_on, verdict

    _positive(num_particles=num_particles, num_runs=num_runs)
    # Where `python -m` looks too: the working folder.
    sys.path.insert(0, "")
    report = report_on(make_sampler, num_particles, num_runs)
    print(f"{report}\n\n{verdict(report, num_particles, num_runs)}")
    return 0 if report.passed else 1


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ConfigurationError(f"{name} must be at least 1, not {value}.")


COMMANDS: dict[str, Callable[..., Any]] = {
    "scale": scale,
    "solve": solve,
    "models": models,
    "paper": paper,
    "check": check,
}


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"tsi: {note}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code, as `exit_code` does."""
    return exit_code(
        lambda: tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="tsi",
            description="Probabilistic inference-time scaling.",
            args=arguments,
        )
    )
