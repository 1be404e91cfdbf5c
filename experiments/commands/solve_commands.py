"""The commands that look at single runs: `tsi solve` and `tsi profile`."""

from pathlib import Path

from tyro.conf import Positional

from tsi.errors import ConfigurationError
from tsi.experiments.commands.forecast_output import print_cost, print_notes
from tsi.experiments.model_options import (
    Dry,
    DryRun,
    ModelOptions,
    Models,
    check_positive,
)
from tsi.experiments.problem_options import ProblemOptions, Problems
from tsi.models.files import check_writable


def solve(
    prompt: Positional[str],
    problems: Problems = ProblemOptions(),  # noqa: B008
    options: Models = ModelOptions(),  # noqa: B008
    method: str = "smc",
    budget: int = 16,
    seed: int = 0,
    figures: Path | None = None,
    dry: Dry = DryRun(),  # noqa: B008
) -> int:
    """Solve one problem and show each step's ESS, the genealogy and the answers.

    Args:
        prompt: the problem, for example "7*8+5-9"; with --policy and without --task,
            any question; with --problems or a published benchmark, the id of a problem
            or any question.
        problems: a task or a file, prompt and grader.
        options: models.
        method: name of the sampler.
        budget: rollouts N.
        seed: seed of the random numbers.
        figures: folder for plots of the genealogy, of effective sample size and rewards
            per step, and of the weights; none are drawn by default.
        dry: estimate the cost and run nothing.
    """
    import jax

    from tsi.experiments.plans.methods import get_method
    from tsi.experiments.plans.run_method import run_method
    from tsi.experiments.solving.solve import solution_text
    from tsi.experiments.worlds.chosen_task import choose_problem

    entry = get_method(method)
    check_positive(budget=budget)
    dry.check()
    has_policy = options.policy is not None
    task, problem = choose_problem(problems, prompt, has_policy=has_policy)
    if dry.dry_run:
        return print_cost(task, options, dry, method, budget, [problem])
    if figures is not None:
        # Check this before the run, and not after it.
        check_writable(figures / "ess.png")
    world = options.world(task, [problem])
    print_notes(world.notes)
    (result,) = run_method(world, method, jax.random.key(seed), [problem], budget)
    print(f"{problem.prompt}   {entry.label}, N = {budget}, seed {seed}\n")
    print(solution_text(result))
    if problem.answer:
        is_right = world.is_correct(problem, result.selected)
        verdict = "solved" if is_right else "not solved"
        print(f"\nRight answer: {problem.answer} ({verdict})")
        print_notes(world.ungraded_notes())
    if figures is not None:
        from tsi.experiments.solving.diagnostics import save_figures

        paths = save_figures(result, figures)
        print(f"Figures: {', '.join(map(str, paths))}")
    return 0


def profile(
    problems: Problems = ProblemOptions(),  # noqa: B008
    options: Models = ModelOptions(),  # noqa: B008
    method: str = "smc",
    budget: int = 16,
    num_problems: int = 8,
    seed: int = 0,
    trace: Path | None = None,
    dry: Dry = DryRun(),  # noqa: B008
) -> int:
    """Run a method on a few problems and show where its time and memory go.

    The host waits for every program, so that the times of the parts do not overlap; an
    ordinary run is a little faster. The second run reads compiled programs from disk,
    and so shows the time without compilation.

    Args:
        problems: a task or a file, prompt and grader.
        options: models.
        method: name of the sampler.
        budget: rollouts N.
        num_problems: number of problems.
        seed: seed of the random numbers.
        trace: folder for a trace of jax.profiler, for TensorBoard or Perfetto.
        dry: estimate the cost and run nothing.
    """
    from tsi.experiments.plans.methods import get_method
    from tsi.experiments.scaling.profiling import profile_run, table_of
    from tsi.experiments.worlds.chosen_task import choose_task

    entry = get_method(method)
    check_positive(budget=budget, num_problems=num_problems)
    dry.check()
    task = choose_task(problems)
    if dry.dry_run:
        return print_cost(task, options, dry, method, budget, num_problems)
    if trace is not None:
        check_writable(trace / "trace")
    world = options.world(task, num_problems, split=problems.split)
    if world.is_served:
        raise ConfigurationError(
            "tsi profile measures programs of this process, and the policy is behind a "
            "server; read the server's own metrics."
        )
    print_notes(world.notes)
    report = profile_run(world, method, budget, seed, trace)
    print(f"{entry.label}, N = {budget}, {num_problems} problems, seed {seed}\n")
    print(table_of(report))
    return 0
