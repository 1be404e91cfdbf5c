"""The published set-up, and the embedded one that stands for it."""

from tsi.experiments.experiment import Experiment
from tsi.experiments.model_options import ModelOptions
from tsi.experiments.problem_options import ProblemOptions

MATH500 = ProblemOptions("math500", preset="steps")
PRM = "qwen:Qwen/Qwen2.5-Math-PRM-7B"
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"
POLICIES = {
    "llama-1b": LLAMA,
    "llama-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen-math-1.5b": "Qwen/Qwen2.5-Math-1.5B-Instruct",
    "qwen-math-7b": "Qwen/Qwen2.5-Math-7B-Instruct",
}
BUDGETS = (1, 2, 4, 8, 16, 32, 64, 128)

SMALL_PROBLEMS = 200
"""Problems of a small experiment: a standard error is about 3.4 points."""
SMALL_BUDGETS = (1, 4, 16)
EMBEDDED_TASKS = ("chain", "countdown")


def published_experiment(
    name: str, policy: str = LLAMA, **changes: object
) -> Experiment:
    """An experiment on MATH500 with the published reward model, in bfloat16.

    Args:
        name: of the experiment.
        policy: hub id.
        changes: other fields of `Experiment`, or of its models.
    """
    models = ModelOptions(policy=policy, reward=PRM, aggregation="model")
    models = models._replace(temperature=0.8, dtype="bfloat16")
    return _change(Experiment(name, MATH500, models, budgets=BUDGETS), changes)


def embedded_experiment(
    name: str, task: str = "countdown", **changes: object
) -> Experiment:
    """An experiment on an embedded task, with few problems and budgets.

    Args:
        name: of the experiment.
        task: for which this package has models.
        changes: other fields of `Experiment`, or of its models.
    """
    experiment = Experiment(
        name,
        ProblemOptions(task),
        budgets=SMALL_BUDGETS,
        num_problems=SMALL_PROBLEMS,
    )
    return _change(experiment, changes)


def _change(experiment: Experiment, changes: dict[str, object]) -> Experiment:
    own_fields = {k: v for k, v in changes.items() if k in Experiment._fields}
    models = {k: v for k, v in changes.items() if k not in own_fields}
    changed = experiment.models._replace(**models)  # type: ignore[arg-type]
    return experiment._replace(models=changed)._replace(**own_fields)  # type: ignore[arg-type]
