"""The models, the offer and the question format behind an endpoint."""

import functools
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError, PromptTooLongError
from tsi.experiments.serving.api_error import ApiError
from tsi.experiments.serving.chat_request import ChatRequest, Offer
from tsi.experiments.serving.completion import Completion, unix_time
from tsi.experiments.serving.conversation import Conversation, conversation_encoder
from tsi.experiments.serving.engine_worker import Job
from tsi.experiments.serving.extension import Run, describe_run
from tsi.experiments.serving.limits import Limits
from tsi.experiments.serving.winner import Winner, choose_winner
from tsi.experiments.tasks.generated import GeneratedTask
from tsi.experiments.tasks.task import Task
from tsi.experiments.worlds.world import World
from tsi.models.tokens.spelling import Spelling
from tsi.problem import Problem
from tsi.results.result import Result

MAX_PROBLEM = 1000
"""Characters of a problem of a generated task, which a message may repeat."""


class Service(NamedTuple):
    """A policy, a reward and a task behind an endpoint.

    Attributes:
        world: runs samplers.
        task: how questions are asked and answers are found.
        tokenizer: of the policy.
        encode: the text of a conversation to token ids.
        offer: what requests are checked against.
        limits: of requests.
        created: when the models were loaded, in seconds since 1970.
    """

    world: World
    task: Task
    tokenizer: Spelling
    encode: Callable[[str], list[int]]
    offer: Offer
    limits: Limits
    created: int

    def prepare(self, request: ChatRequest) -> tuple[Problem, Completion]:
        """The problem of a request, and the frame of the response.

        Encoding may take a while, so this runs in a separate thread.

        Raises:
            ApiError: the question is not a problem of the task, or its prompt is too
                long or has characters that the model cannot read.
        """
        completion_id = f"chatcmpl-{secrets.token_hex(12)}"
        problem = find_problem(self.task, request.conversation)
        try:
            num_tokens = len(self.encode(problem.prompt))
            if num_tokens <= self.limits.max_prompt_tokens:
                self.world.engine.check([problem])
        except PromptTooLongError as error:
            raise _too_long(str(error)) from None
        except ConfigurationError as error:
            raise ApiError(str(error), param="messages") from None
        if num_tokens > self.limits.max_prompt_tokens:
            raise _too_long(
                f"The prompt has {num_tokens:,} tokens, and this server reads at most "
                f"{self.limits.max_prompt_tokens:,} (--max-prompt-tokens)."
            )
        id = request.problem_id
        if id is None and request.seed is None:
            # Requests of one batch share a seed, and are told apart by their ids.
            id = completion_id
        if id is not None:
            problem = problem._replace(id=id)
        completion = Completion(
            completion_id, self.offer.model, unix_time(), num_tokens
        )
        return problem, completion

    def make_job(self, request: ChatRequest, problem: Problem) -> Job:
        """The work of a request; called in the event loop."""
        return Job(request, problem, functools.partial(self._describe_result, request))

    def _describe_result(
        self, request: ChatRequest, result: Result, run: Run
    ) -> tuple[Winner, dict[str, Any]]:
        """The text and the extension of a result."""
        winner = choose_winner(result, self.tokenizer, request.max_tokens)
        extension = describe_run(
            result, run, winner.particle, genealogy=request.genealogy
        )
        return winner, extension


def make_service(world: World, task: Task, offer: Offer, limits: Limits) -> Service:
    """The service of a world whose prompts are encoded by `conversation_encoder`.

    Raises:
        ConfigurationError: the tokenizer of the policy is not known, or the reward
            needs the right answers, which questions of clients do not have.
    """
    if world.tokenizer is None:
        raise ConfigurationError("The tokenizer of the policy is not known.")
    if world.settings.get("reward") == "outcome-verifier":
        raise ConfigurationError(
            "The reward outcome-verifier compares with right answers, and questions "
            "of clients have none; choose another reward."
        )
    encode = conversation_encoder(task, world.tokenizer)
    return Service(world, task, world.tokenizer, encode, offer, limits, unix_time())


def find_problem(task: Task, conversation: Conversation) -> Problem:
    """The problem of a conversation.

    Raises:
        ApiError: it is not a problem of a generated task.
    """
    if not isinstance(task, GeneratedTask):
        return Problem("question", conversation.text(), "")
    if not conversation.is_question:
        raise ApiError(
            f"This server solves single problems of the task {task.name}; send one "
            "message, of the user.",
            param="messages",
        )
    if len(conversation.question) > MAX_PROBLEM:
        raise _too_long(
            f"Problems of the task {task.name} have at most {MAX_PROBLEM} characters."
        )
    try:
        return task.problem(conversation.question)
    except ConfigurationError as error:
        raise ApiError(str(error), param="messages") from None


def _too_long(sentence: str) -> ApiError:
    return ApiError(sentence, param="messages", code="context_length_exceeded")
