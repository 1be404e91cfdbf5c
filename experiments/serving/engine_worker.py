"""The one thread that runs the engine, and the requests that wait for it.

Event loops must not wait for JAX, and the engine runs one method at a time. Requests
wait in order. When the thread is free it takes the first one, and with it later ones
that have the same method, budget and temperature, up to as many problems as the engine
runs at the same time. These are problems of one run. The random numbers of a problem
depend only on the seed and its id, so an answer does not depend on the others of its
batch.

Requests of a batch share a seed, and so need the same one, or none; a seed is then
drawn for all of them. Requests with the same seed and the same id of the problem would
have the same random numbers; they run one after the other.
"""

import asyncio
import contextlib
import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any

import jax

from tsi.errors import (
    CapabilityError,
    ConfigurationError,
    OutOfMemoryError,
    ProblemError,
    PromptTooLongError,
    ServerError,
    TsiError,
)
from tsi.experiments.plans.methods import get_method, sampler_of
from tsi.experiments.plans.run_method import run_method
from tsi.experiments.serving.api_error import ApiError
from tsi.experiments.serving.chat_request import MAX_SEED, ChatRequest
from tsi.experiments.serving.extension import Run
from tsi.experiments.worlds.world import World
from tsi.problem import Problem
from tsi.results.result import Result

log = logging.getLogger("tsi.serve")

STOP_SECONDS = 10
"""Within which a program of the engine usually ends, unless it is compiled."""

STOPPING = "The server is stopping; send the request again later."
NO_POLICY = (
    "The server of the policy or of the reward does not answer, or refuses the "
    "request; the log has the reason."
)
FAILED = "The server failed on this request; its log has the reason."


class AbandonedError(Exception):
    """Nobody waits for the results of a run any more."""


class Job:
    """A request that waits for the engine or is computed.

    Args:
        request: what the client wants.
        problem: whose id is the one of the random numbers.
        present: `(result, run)` to what the request's coroutine receives; it runs in
            the engine's thread.

    Attributes:
        future: of the value of `present`, or an ApiError.
    """

    def __init__(
        self,
        request: ChatRequest,
        problem: Problem,
        present: Callable[[Result, Run], Any],
    ) -> None:
        self.request, self.problem, self.present = request, problem, present
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.is_cancelled = False

    @property
    def kind(self) -> tuple[Any, ...]:
        """What requests of one batch have in common."""
        request = self.request
        return request.method, request.budget, request.temperature, request.seed

    def end(self, value: Any) -> None:
        """Give the coroutine a value, or an ApiError; from any thread."""

        def set_value() -> None:
            if self.future.done():
                return
            if isinstance(value, ApiError):
                self.future.set_exception(value)
                # A coroutine that has gone does not ask for it.
                self.future.exception()
            else:
                self.future.set_result(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(set_value)


class EngineWorker:
    """Runs requests on an engine in a separate thread.

    Args:
        world: the models.
        max_concurrent: requests that wait or are computed.
    """

    def __init__(self, world: World, max_concurrent: int) -> None:
        self.world, self.max_concurrent = world, max_concurrent
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._is_draining = self._is_stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def num_open(self) -> int:
        """Requests that wait or are computed."""
        with self._changed:
            return len(self._waiting) + len(self._running)

    def check_room(self) -> None:
        """Refuse a request that cannot be taken now.

        Raises:
            ApiError: too many wait (429), or the server is stopping (503).
        """
        if self._is_draining:
            raise ApiError(STOPPING, 503, code="stopping")
        if self.num_open >= self.max_concurrent:
            raise ApiError(
                f"The server is busy with {self.max_concurrent} requests; send this "
                "one again later.",
                429,
                code="busy",
                headers={"Retry-After": "1"},
            )

    def submit(self, job: Job) -> None:
        """Add a request to those that wait.

        Raises:
            ApiError: see `check_room`.
        """
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Forget a request whose client has gone; a run without any other is ended."""
        with self._changed:
            job.is_cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def drain(self) -> None:
        """Take no more requests, and refuse those that wait."""
        with self._changed:
            self._is_draining = True
            waiting, self._waiting = self._waiting, []
        for job in waiting:
            job.end(ApiError(STOPPING, 503, code="stopping"))

    def stop(self) -> None:
        """End the run after its current program, and then the thread."""
        self.drain()
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def join(self) -> bool:
        """Wait for the end of the thread, for a while; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while batch := self._take():
            try:
                self._run(batch)
            except BaseException:
                # Nothing may end the thread on which all requests wait, not even the
                # panic of a Rust library, which is no Exception.
                log.exception("A request failed.")
                self._fail(batch, ApiError(FAILED, 500))
            finally:
                with self._changed:
                    self._running = []

    def _take(self) -> list[Job]:
        """The next batch; empty when the thread is to end."""
        with self._changed:
            while not self._waiting and not self._is_stopping:
                self._changed.wait()
            if self._is_stopping:
                return []
            first, *others = self._waiting
            batch, ids, room = [first], {first.problem.id}, self._room(first)
            for job in others:
                if len(batch) >= room:
                    break
                if job.kind == first.kind and job.problem.id not in ids:
                    batch.append(job)
                    ids.add(job.problem.id)
            self._waiting = [job for job in self._waiting if job not in batch]
            self._running = batch
            return batch

    def _room(self, job: Job) -> int:
        """The number of problems that the engine runs at the same time."""
        sampler = sampler_of(job.request.method, self.world.max_steps)
        try:
            return self.world.engine.problems_at_once(sampler, job.request.budget)
        except TsiError:
            # The run gives the reason.
            return 1

    def _run(self, batch: list[Job]) -> None:
        request = batch[0].request
        seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed

        def check_waiting(progress: Any) -> None:
            if self._is_stopping or all(job.is_cancelled for job in batch):
                raise AbandonedError

        failures: dict[Any, Exception] = {}
        try:
            results = run_method(
                self.world,
                request.method,
                jax.random.key(seed),
                [job.problem for job in batch],
                request.budget,
                temperature=request.temperature,
                progress=check_waiting,
            )
        except AbandonedError:
            self._fail(batch, ApiError(STOPPING, 503, code="stopping"))
            return
        except ProblemError as error:
            for text in error.tracebacks.values():
                log.error("A problem failed.\n%s", text)
            results, failures = list(error.results), error.failures
        except (ConfigurationError, PromptTooLongError, CapabilityError) as error:
            if len(batch) > 1:
                # One request must not make the others fail.
                for job in batch:
                    self._run([job])
            else:
                self._fail(batch, ApiError(str(error)))
            return
        except ServerError:
            log.exception("The server of the policy failed.")
            self._fail(batch, policy_error())
            return
        by_id = {result.problem_id: result for result in results}
        run = Run(
            request.method,
            request.budget,
            seed,
            self._temperature_of(request),
            len(batch),
        )
        for job in batch:
            result = by_id.get(job.problem.id)
            if result is None:
                job.end(error_of(failures.get(job.problem.id)))
            else:
                job.end(job.present(result, run))

    def _temperature_of(self, request: ChatRequest) -> float:
        fixed = get_method(request.method).temperature
        if request.temperature is not None:
            return request.temperature
        return float(self.world.settings["temperature"]) if fixed is None else fixed

    def _fail(self, batch: list[Job], error: ApiError) -> None:
        for job in batch:
            job.end(error)


def error_of(failure: Exception | None) -> ApiError:
    """The error that a client gets if its problem fails."""
    if isinstance(failure, CapabilityError):
        return ApiError(str(failure))
    if isinstance(failure, OutOfMemoryError):
        return ApiError(str(failure), 503, code="out_of_memory")
    return policy_error() if isinstance(failure, ServerError) else ApiError(FAILED, 500)


def policy_error() -> ApiError:
    """The error if a server behind this one fails; it does not name its address."""
    return ApiError(NO_POLICY, 502, code="policy_failed")
