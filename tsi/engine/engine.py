"""The engine: one sampler on many problems, scheduled independently.

The problems are divided among groups of devices. A :class:`tsi.engine.lane.Lane` is the
loop over the problems of one group. Programs with models are compiled for numbers of
rows and positions and do not depend on the method; those of samplers are small.

Compiled programs are cached between processes: see
:func:`tsi.engine.meters.compilation.keep_programs`.

The keys are those of :func:`tsi.run.run` under ``problem_key(key, problem.id)``, which
for integers is ``fold_in(key, problem.id)``, so that a problem's samples do not depend
on which problems share its batch, on how many rows a batch has, or on how many devices
hold them.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tsi.decoding.repetition import check_penalty
from tsi.decoding.token_draws import check_temperatures
from tsi.decoding.truncation import Truncation
from tsi.decoding.vocabularies import check_rows
from tsi.engine.agreement import count_as_waiting
from tsi.engine.base import BaseEngine
from tsi.engine.engine_run import EngineRun
from tsi.engine.lane import Lane
from tsi.engine.lanes import check_processes, divide
from tsi.engine.meters.clock import Timed
from tsi.engine.meters.compilation import keep_programs
from tsi.engine.meters.report import Progress
from tsi.engine.methods import method_of, plan_of
from tsi.engine.model_weights import (
    ModelWeights,
    fetch_weights,
    weights_of_groups,
)
from tsi.engine.outcome import slot_costs
from tsi.engine.outcomes import Outcomes
from tsi.engine.programs.model_programs import Programs
from tsi.engine.prompts import encode_prompt, pad_prompts
from tsi.engine.run_checks import (
    check_method,
    check_num_particles,
    check_offload,
    truncation_in_effect,
)
from tsi.engine.sizing import sizes as sizing
from tsi.engine.sizing.memory import (
    CacheSizes,
    bytes_of_row,
    cache_sizes,
    check_cache_dtype,
    check_fits,
    check_prompts_fit,
    free_beside_weights,
)
from tsi.engine.sizing.prompt_memory import bytes_to_read
from tsi.engine.sizing.sizes import (
    Sizes,
    problems_in_work,
    rows_in_flight,
    sizes_of,
)
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.explore import check_needs
from tsi.explorer import Explorer, Plan
from tsi.models.decode_kernel import check_kernel
from tsi.models.decoder import LanguageModel, with_cache_dtype
from tsi.models.exchange import least_bytes
from tsi.models.partition import MODEL, keep_or_replicate, spans_processes
from tsi.problem import Problem
from tsi.problem_ids import check_ids, id_words
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.reasoning.target import ReasoningTarget
from tsi.results.result import Result
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey, single_key


class Engine(BaseEngine):
    """Runs samplers on problems of one policy and one reward.

    Attributes:
        report: of the last run; None before the first.
        max_in_flight: the most rows of the problems that run at once on one device, or
            group of devices.

    Args:
        target: the target.
        policy: the language model's weights.
        reward_model: the reward model's weights, or None if the reward has no model.
        encode: function from a problem's prompt to token ids, chat template included.
        decode: function from token ids to text, end tokens dropped.
        temperature: of the policy; 0 takes the most likely token.
        truncation: restricts the tokens of the policy. The truncated policy is the p of
            the target and of all weights; None for the full policy.
        repetition_penalty: penalty on tokens that occurred before, as a part of the
            policy (:mod:`tsi.decoding.repetition`); None for no penalty.
        cache_dtype: type of the keys and values of policy and reward model, such as
            ``"bfloat16"`` with float32 weights; None for the type of the weights.
        max_rows: the maximum number of rows for which one device, or group of devices,
            draws tokens at once.
        max_stored: the maximum number of prefixes that explorers store at once; by
            default 16 times `max_rows`.
        mesh: devices: problems are divided along its ``data`` axis, weights and heads
            along ``model``; None for one device. Weights that are already on these
            devices, divided or not, are not moved.
        offload_weights: keep the weights of both models in the host's memory, and copy
            to the devices only those of the model that is in use. Weights that are
            already on a device stay there as long as the caller refers to them, so load
            them on the host.
        attention: what attends to caches while tokens are drawn: ``"plain"``
            operations, or a ``"kernel"`` that reads filled positions only
            (:mod:`tsi.models.decode_kernel`).

    Raises:
        ConfigurationError: the reward model has no row for a token that the policy may
            draw; the penalty is not a positive number; a limit of rows is below 1; the
            cache's type is not supported; the kernel does not compute the attention of
            the policy; or weights are to be offloaded, and the
            reward has no model that reads rendered text. Whether both models have the
            same tokens is not checked: see
            :func:`tsi.decoding.vocabularies.first_difference`.
    """

    def __init__(
        self,
        target: ReasoningTarget,
        policy: LanguageModel,
        reward_model: Any,
        *,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
        temperature: float = 1.0,
        truncation: Truncation | None = None,
        repetition_penalty: float | None = None,
        cache_dtype: str | None = None,
        max_rows: int = 2048,
        max_stored: int | None = None,
        mesh: Mesh | None = None,
        offload_weights: bool = False,
        attention: Literal["plain", "kernel"] = "plain",
    ) -> None:
        self.target, self.encode, self.decode = target, encode, decode
        self.temperature, self.max_rows, self.mesh = temperature, max_rows, mesh
        self.truncation, self.repetition_penalty = truncation, repetition_penalty
        if repetition_penalty is not None:
            check_penalty(repetition_penalty)
        self.max_stored = 16 * max_rows if max_stored is None else max_stored
        # A planned number may be exceeded by a single problem, one that is given not.
        self._stored_limit = max_stored
        for name, limit in {
            "max_rows": max_rows,
            "max_stored": self.max_stored,
        }.items():
            if limit < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {limit}.")
        readers = [reward_model.config] if target.reward.reads_ids else []
        check_rows(target.boundary, policy.config, readers)
        self._num_rows = min(c.vocab_size for c in (policy.config, *readers))
        self._context = min(c.max_length for c in (policy.config, *readers))
        if cache_dtype is not None:
            check_cache_dtype(cache_dtype)
            policy = with_cache_dtype(policy, cache_dtype)
            reward_model = with_cache_dtype(reward_model, cache_dtype)
        if offload_weights:
            check_offload(target.reward)
            policy, reward_model = fetch_weights((policy, reward_model))
        elif mesh is not None:
            policy, reward_model = keep_or_replicate((policy, reward_model), mesh)
        self.policy, self.reward_model = policy, reward_model
        self.offload_weights = offload_weights
        self.max_in_flight = rows_in_flight(max_rows, self._flops)
        check_processes(mesh)
        self._parts = divide(mesh)
        if attention not in ("plain", "kernel"):
            raise UnknownNameError("attention", attention, ("plain", "kernel"))
        by_kernel = attention == "kernel"
        if by_kernel:
            check_kernel(policy.config, mesh, cache_dtype, policy.trunk.dtype)
        self._programs = [
            Programs(target, part, by_kernel=by_kernel) for part in self._parts
        ]

    @property
    def num_groups(self) -> int:
        """Number of groups of devices."""
        return len(self._parts)

    @property
    def num_programs(self) -> int:
        """Number of compiled programs that read prompts, read steps or draw tokens."""
        return sum(self._model_programs().values())

    def _model_programs(self) -> dict[str, int]:
        counts = Counter[str]()
        for programs in self._programs:
            counts.update(programs.counts())
        return dict(counts)

    def problems_at_once(self, sampler: Sampler | Explorer, num_particles: int) -> int:
        """Maximum number of problems at once, over all groups of devices."""
        plan = plan_of(sampler, num_particles, self.target.max_steps)
        return len(self._parts) * self._problems_of_a_lane(plan)

    def check_fits(self, sampler: Sampler | Explorer, num_particles: int) -> None:
        """Refuse a number of particles that memory cannot hold, before work begins.

        Raises:
            ConfigurationError: the rows of one problem need more memory than is free,
                or its prefixes are more than `max_stored`.
        """
        plan = plan_of(sampler, num_particles, self.target.max_steps)
        if self._stored_limit is not None and plan.stored > self._stored_limit:
            raise ConfigurationError(
                f"N = {num_particles:,} stores {plan.stored:,} prefixes of a problem, "
                f"and max_stored is {self._stored_limit:,}. Raise it, or lower N."
            )
        row = bytes_of_row(self.target, self.caches.existing_sizes, sizing.BLOCK)
        check_fits(row, plan, num_particles, self.free_bytes())

    @property
    def caches(self) -> CacheSizes:
        """Bytes per position in the caches of the policy and the reward."""
        parts = 1 if self.mesh is None else self.mesh.shape.get(MODEL, 1)
        return cache_sizes(self.target, self.policy, self.reward_model, parts)

    def free_bytes(self) -> int:
        """Free bytes of a device minus those of weights that are not on it yet.

        If weights are offloaded, these are the bytes of the larger model. If the model
        is divided over several processes, all of them must ask.
        """
        free = free_beside_weights(
            (self.policy, self.reward_model),
            self.mesh,
            offload_weights=self.offload_weights,
        )
        if spans_processes(self.mesh):
            return least_bytes(self.mesh, free)
        return free

    def stream(
        self,
        sampler: Sampler | Explorer,
        key: AnyKey,
        problems: Sequence[Problem],
        num_particles: int,
        *,
        extract: Callable[[str], str | None],
        temperature: float | None = None,
        proposal_temperature: float | None = None,
        truncation: Truncation | None = None,
        progress: Callable[[Progress], None] | None = None,
        exact: bool = False,
    ) -> Iterator[Result]:
        """Run a sampler on problems and yield each result as its problem ends.

        Arguments are checked immediately; the run starts when the first result is
        requested. If the iterator is closed early, or stopped by Ctrl-C, unfinished
        problems are abandoned; results that were yielded are not affected.

        Args:
            sampler: a sampler or an explorer.
            key: of either style; a problem runs under ``problem_key(key, problem.id)``.
            problems: any number; each starts when there is room for its rows.
            num_particles: N, for each problem.
            extract: canonical answer of a solution's text, or None.
            temperature: overrides the engine's.
            proposal_temperature: draw tokens at this temperature and correct the
                weights; None draws from the policy.
            truncation: overrides the engine's.
            progress: called each time the host reads the state of the slots.
            exact: whether `report` has the exact time of each kind of program, for
                which the host waits for every program
                (:mod:`tsi.engine.meters.clock`).

        Returns:
            Results in the order in which their problems end; the order may change
            between runs. The seconds of a result are the time since the previous one.

        Raises:
            PromptTooLongError: a prompt and the token limit exceed the context of the
                policy or the reward model; raised before anything is computed.
            ConfigurationError: the sampler cannot use N particles; a temperature,
                truncation or key is invalid; problems have the same id or an invalid
                one; a prompt has tokens that a model lacks; or there is not enough
                memory to read the longest prompt.
            CapabilityError: the sampler needs a capability that a reasoning target
                lacks.
            ProblemError: some problems failed: the reward or `extract` raised an error,
                the policy's logits are NaN, or memory ran out for the problem alone;
                raised after all others have ended.
        """
        check_method(sampler)
        key = single_key(key)
        check_num_particles(num_particles)
        if isinstance(sampler, Explorer):
            check_needs(sampler, ReasoningStore(self.target))
        self.check_fits(sampler, int(num_particles))
        method = method_of(sampler, num_particles, self.target.max_steps)
        method = method._replace(
            begin=Timed(method.begin, "decide"), turn=Timed(method.turn, "decide")
        )
        temperature = self.temperature if temperature is None else temperature
        check_temperatures(temperature, proposal_temperature)
        truncation = self.truncation if truncation is None else truncation
        truncation = truncation_in_effect(truncation)
        check_ids(problems)
        prompts = [self.encode_problem(problem) for problem in problems]
        questions = self.target.reward.prepare([problem.prompt for problem in problems])
        if not problems:
            return iter(())
        keep_programs()
        params = self._params(temperature, proposal_temperature, truncation)
        batch = pad_prompts(prompts)
        ids = id_words(problem.id for problem in problems)
        on_host = jax.tree.map(np.asarray, questions)
        width = batch.tokens.shape[1]
        problems_each = -(-len(problems) // self.num_groups)
        sizes = self.sizes_of(method.plan, problems_each, width)
        prefill = self._bytes_to_read(sizes.prompts(width), width, questions)
        min_bytes = self._bytes_to_read(1, width, questions)
        check_prompts_fit(min_bytes, width, self.free_bytes())

        weights = weights_of_groups(
            params,
            self._parts,
            reads_text=self._programs[0].texts is not None,
            offload=self.offload_weights,
        )

        def lane_of(group: int, sizes: Sizes) -> Lane:
            programs = self._programs[group]
            return Lane(
                programs,
                method,
                key,
                weights[group],
                batch,
                on_host,
                ids,
                sizes,
                exact,
            )

        run = EngineRun(
            problems,
            lane_of,
            self.num_groups,
            sizes,
            Outcomes(
                sampler,
                num_particles,
                self.encode,
                self.decode,
                extract,
                functools.partial(slot_costs, target=self.target, params=params),
                corrects=self.target.forced_end is not None,
            ),
            (batch.lengths, (batch if questions is None else questions).lengths),
            progress,
            self.mesh,
        )
        devices = [None] if self.mesh is None else self.mesh.local_devices
        record = self._recorder()

        def record_report() -> None:
            report = run.report(devices)._replace(
                model_programs=self._model_programs(), prefill_bytes=prefill
            )
            record(report)

        return count_as_waiting(_results(run, record_report, weights), self.mesh)

    def _params(
        self,
        temperature: float,
        proposal_temperature: float | None,
        truncation: Truncation | None,
    ) -> ReasoningParams:
        """The parameters of a run, without its prompts."""
        penalty = self.repetition_penalty
        unread: Any = None
        return ReasoningParams(
            self.policy,
            self.reward_model,
            unread,
            jnp.float32(temperature),
            None if proposal_temperature is None else jnp.float32(proposal_temperature),
            truncation,
            None if penalty in (None, 1) else jnp.float32(penalty),
        )

    def _bytes_to_read(self, prompts: int, width: int, questions: Any) -> int:
        """See :func:`tsi.engine.sizing.prompt_memory.bytes_to_read`."""
        models = self.policy, self.reward_model
        return bytes_to_read(self.target, *models, prompts, width, questions)

    def _problems_of_a_lane(self, plan: Plan) -> int:
        """Maximum number of problems of a plan at once, per group of devices."""
        return problems_in_work(plan, self.max_in_flight, self.max_stored)

    def sizes_of(self, plan: Plan, problems: int, width: int) -> Sizes:
        """The sizes of a lane of one group of devices.

        Args:
            plan: of a problem.
            problems: number of problems of the group.
            width: positions of the prompts.
        """
        return sizes_of(
            plan,
            min(problems, self._problems_of_a_lane(plan)),
            width,
            flops=self._flops,
            step_tokens=self.target.max_step_tokens,
            max_rows=self.max_rows,
            in_flight=self.max_in_flight,
            max_problems=self._problems_of_a_lane(plan),
        )

    @property
    def _flops(self) -> float:
        """FLOPs per token of one row, without attention."""
        return self.policy.config.flops_per_token(0.0)

    def encode_problem(self, problem: Problem) -> list[int]:
        """See :class:`tsi.engine.base.BaseEngine`."""
        return encode_prompt(
            problem, self.encode, self.target, self._num_rows, self._context
        )


def _results(
    run: EngineRun, record: Callable[[], None], weights: list[ModelWeights]
) -> Iterator[Result]:
    """The results of a run, after which its memory on the devices is free."""
    try:
        yield from run.results(record)
    finally:
        run.end()
        for part in weights:
            part.release()
