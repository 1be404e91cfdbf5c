"""From the options of the command line to a service."""

from collections.abc import Callable
from pathlib import Path

from tsi.errors import ConfigurationError, PromptTooLongError
from tsi.experiments.plans.methods import get_method
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.serving.chat_request import POLICY_FIELDS, Offer
from tsi.experiments.serving.conversation import conversation_encoder
from tsi.experiments.serving.limits import Limits
from tsi.experiments.serving.service import Service, make_service
from tsi.experiments.tasks.generated import GeneratedTask
from tsi.experiments.tasks.task import Task
from tsi.experiments.worlds.chosen_task import choose_questions, choose_task
from tsi.experiments.worlds.world import World
from tsi.problem import Problem

FILLER = "one "
"""A word of about one token, of which the longest prompt is made."""


def load_service(
    problems: ProblemOptions,
    load_world: Callable[..., World],
    *,
    has_policy: bool,
    method: str,
    budget: int,
    model_name: str | None,
    limits: Limits,
) -> Service:
    """Load the models and return the service.

    Args:
        problems: how questions are asked, as for `tsi solve`.
        load_world: ``(task, problems, encoder=...) -> World``, such as
            :meth:`tsi.experiments.model_options.ModelOptions.world`.
        has_policy: whether a policy is named.
        method, budget: defaults of requests.
        model_name: the model's name for clients; by default the policy's name.
        limits: of requests.

    Raises:
        TsiError: the method, the task or the models are refused.
    """
    smallest = get_method(method).min_particles
    if not smallest <= budget <= limits.max_budget:
        raise ConfigurationError(
            f"The budget of {method} must be between {smallest} and --max-budget, "
            f"{limits.max_budget}; it is {budget}."
        )
    filler = (FILLER * limits.max_prompt_tokens).strip()
    task = choose_questions(problems, filler, has_policy=has_policy)
    task = task or choose_task(problems)
    try:
        longest = _longest_problem(task, filler)
        world = load_world(task, [longest], encoder=conversation_encoder)
    except PromptTooLongError as error:
        raise PromptTooLongError(
            f"A prompt of about {limits.max_prompt_tokens:,} tokens, the limit "
            f"--max-prompt-tokens, does not fit. {error}"
        ) from None
    offer = Offer(
        model_name or _short_name(str(world.settings["policy"])),
        method,
        budget,
        limits.max_budget,
        {name: world.settings.get(name) for name in POLICY_FIELDS},
    )
    service = make_service(world, task, offer, limits)
    shortest = longest.prompt if isinstance(task, GeneratedTask) else FILLER.strip()
    num_tokens = len(service.encode(shortest))
    if num_tokens > limits.max_prompt_tokens:
        raise ConfigurationError(
            f"A short question already makes a prompt of {num_tokens:,} tokens, and "
            f"--max-prompt-tokens is {limits.max_prompt_tokens:,}; raise it."
        )
    return service


def _longest_problem(task: Task, filler: str) -> Problem:
    """A problem for which memory is planned."""
    if isinstance(task, GeneratedTask):
        return task.problems("train", 1, 0)[0]
    return Problem("question", filler, "")


def _short_name(policy: str) -> str:
    """The name of a policy; of a path its last part, since clients need no paths."""
    return Path(policy).name if Path(policy).exists() else policy


def check_name(name: str | None) -> None:
    """Refuse a name of the model that cannot be written in a URL.

    Raises:
        ConfigurationError: see above.
    """
    if name is not None and not (name.isascii() and name.isprintable() and name):
        raise ConfigurationError(
            f"The name of the model, {name!r}, must have printable ASCII characters "
            "only."
        )
