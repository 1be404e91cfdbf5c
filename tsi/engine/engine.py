"""The engine: one sampler on many problems, each at its own pace.

A :class:`tsi.engine.lane.Lane` runs on one group of devices, and the problems are
divided among the lanes. Programs with models are compiled for numbers of rows and
positions and do not depend on the method; those of samplers are small.

Compiled programs are cached between processes: see
:func:`tsi.engine.meters.compilation.keep_programs`.

The keys are those of :func:`tsi.run.run` under ``problem_key(key, problem.id)``, which
for integers is ``fold_in(key, problem.id)``, so that a problem's samples do not depend
on which problems share its batch, on how many rows a batch has, or on how many devices
hold them.
"""

import functools
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tsi.decoding.decode_step import check_temperatures
from tsi.decoding.repetition import check_penalty
from tsi.decoding.truncation import Truncation
from tsi.decoding.vocabularies import check_rows
from tsi.engine.concurrency import run_concurrently
from tsi.engine.ended_problems import FailedProblem
from tsi.engine.endurance import Endurance
from tsi.engine.lane import Lane
from tsi.engine.lanes import divide, part_of
from tsi.engine.meters.clock import Timed
from tsi.engine.meters.compilation import compilations, keep_programs
from tsi.engine.meters.report import Progress, Report, over, total
from tsi.engine.methods import method_of, plan_of
from tsi.engine.outcomes import Outcomes
from tsi.engine.programs.model_programs import Programs
from tsi.engine.prompts import encode_prompt, pad_prompts
from tsi.engine.sizing import sizes as sizing
from tsi.engine.sizing.memory import (
    CacheSizes,
    bytes_of_row,
    cache_sizes,
    check_cache_dtype,
    check_fits,
    check_prompts_fit,
    free_bytes,
    peak_bytes,
    unloaded_bytes,
)
from tsi.engine.sizing.sizes import Sizes, problems_in_work, sizes_of
from tsi.errors import (
    ConfigurationError,
    ProblemError,
    Stopped,
    detach,
    warn_of_invalid,
)
from tsi.explore import check_needs
from tsi.explorer import Explorer, Plan
from tsi.models.decoder import LanguageModel, with_cache_dtype
from tsi.models.partition import MODEL, keep_or_replicate
from tsi.models.prefill import prefill_bytes
from tsi.problem import Problem
from tsi.problem_ids import check_ids, id_words
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.reasoning.target import ReasoningTarget
from tsi.results.result import Result
from tsi.rewards.text_reader import TextReader
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey, single_key


class Engine:
    """Runs samplers on problems of one policy and one reward.

    Attributes:
        report: of the last run; None before the first.

    Args:
        target: the target.
        policy: the language model's weights.
        reward_model: the reward model's weights, or None if the reward has no model.
        encode: a problem's prompt to token ids, chat template included.
        decode: token ids to text, end tokens dropped.
        temperature: of the policy; 0 takes the most likely token.
        truncation: restricts the tokens of the policy. The truncated policy is the p of
            the target and of all weights; None for the full policy.
        repetition_penalty: of tokens that occurred before, as a part of the policy
            (:mod:`tsi.decoding.repetition`); None for none.
        cache_dtype: type of the keys and values of policy and reward model, such as
            ``"bfloat16"`` beside float32 weights; that of the weights if None.
        max_rows: the most rows for which one device, or group of devices, draws tokens
            at once.
        max_stored: the most prefixes that explorers store at once; by default 16 times
            `max_rows`.
        mesh: devices: problems are divided along its ``data`` axis, weights and heads
            along ``model``; None for one device. Weights that are on these devices
            already, divided or not, are not moved.

    Raises:
        ConfigurationError: the reward model has no row for a token that the policy may
            draw; the penalty is not a positive number; a limit of rows is below 1; or
            the cache's type is not supported. Whether both models have the same tokens
            is not checked: see :func:`tsi.decoding.vocabularies.first_difference`.
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
    ) -> None:
        self.target, self.encode, self.decode = target, encode, decode
        self.temperature, self.max_rows, self.mesh = temperature, max_rows, mesh
        self.truncation, self.repetition_penalty = truncation, repetition_penalty
        if repetition_penalty is not None:
            check_penalty(repetition_penalty)
        self.max_stored = 16 * max_rows if max_stored is None else max_stored
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
        if mesh is not None:
            policy, reward_model = keep_or_replicate((policy, reward_model), mesh)
        self.policy, self.reward_model = policy, reward_model
        self._parts = divide(mesh)
        self._programs = [Programs(target, part) for part in self._parts]
        self.report: Report | None = None

    @property
    def num_groups(self) -> int:
        """Number of groups of devices."""
        return len(self._parts)

    @property
    def num_programs(self) -> int:
        """Number of compiled model programs: to read prompts and steps, and to draw."""
        return sum(self._model_programs().values())

    def _model_programs(self) -> dict[str, int]:
        counts = Counter[str]()
        for programs in self._programs:
            counts.update(programs.counts())
        return dict(counts)

    def check(self, problems: Sequence[Problem]) -> None:
        """Refuse problems that cannot be run, before anything is computed.

        Raises:
            ConfigurationError: problems have the same id or an invalid one, or a prompt
                is empty or has tokens that a model lacks.
            PromptTooLongError: a prompt and the token limit exceed the context of the
                policy or the reward model.
        """
        check_ids(problems)
        for problem in problems:
            self._encode(problem)

    def problems_at_once(self, sampler: Sampler | Explorer, num_particles: int) -> int:
        """The most problems in work at once, over all groups of devices."""
        plan = plan_of(sampler, num_particles, self.target.max_steps)
        return len(self._parts) * self._problems_of_a_lane(plan)

    def check_fits(self, sampler: Sampler | Explorer, num_particles: int) -> None:
        """Refuse a number of particles that memory cannot hold, before work begins.

        Raises:
            ConfigurationError: the rows of one problem need more memory than is free.
        """
        plan = plan_of(sampler, num_particles, self.target.max_steps)
        row = bytes_of_row(self.target, self.caches.grown, sizing.BLOCK)
        check_fits(row, plan, num_particles, self.free_bytes())

    @property
    def caches(self) -> CacheSizes:
        """Bytes of a position in the caches of the policy and the reward."""
        parts = 1 if self.mesh is None else self.mesh.shape.get(MODEL, 1)
        return cache_sizes(self.target, self.policy, self.reward_model, parts)

    def free_bytes(self) -> int:
        """Free bytes of a device, less those of weights that are not loaded yet."""
        devices = [None] if self.mesh is None else self.mesh.local_devices
        free = min(free_bytes(device) for device in devices)
        whole = self.mesh is None or self.mesh.shape.get(MODEL, 1) == 1
        mesh = None if whole else self.mesh
        return free - unloaded_bytes((self.policy, self.reward_model), mesh)

    def _prefill_bytes(self, prompts: int, width: int, questions: Any) -> int:
        """The most bytes that programs that read prompts need beside the weights.

        Args:
            prompts: number of prompts that are read together.
            width: positions of the policy's prompts.
            questions: the result of the reward's `prepare`, for all prompts.
        """
        unread: Any = None
        params = ReasoningParams(self.policy, self.reward_model, unread, unread)
        models: list[tuple[Any, Any, int]] = [(self.policy, self.policy.config, width)]
        reward = self.target.reward
        if reward.reads_prompts:
            # A model with another tokenizer has prompts of another width.
            own = isinstance(reward, TextReader) and questions is not None
            read = questions.tokens.shape[1] if own else width
            models.append((self.reward_model, reward.reader(params), read))
        return sum(
            prefill_bytes(
                config,
                prompts,
                positions,
                model.trunk.dtype.itemsize,
                cached=model.trunk.cache_dtype.itemsize,
            )
            for model, config, positions in models
            # The state of a custom reward is not known.
            if config is not None and hasattr(model, "trunk")
        )

    def run(
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
    ) -> list[Result]:
        """Run a sampler on every problem; arguments and errors are those of `stream`.

        Returns:
            One result per problem, in order.

        Raises:
            ProblemError: as `stream` does; it has the results of the other problems.
            Stopped: after a signal; it has the results of problems that had ended.
        """
        began = time.perf_counter()
        failed: ProblemError | Stopped | None = None
        found: list[Result] = []
        stream = self.stream(
            sampler,
            key,
            problems,
            num_particles,
            extract=extract,
            temperature=temperature,
            proposal_temperature=proposal_temperature,
            truncation=truncation,
            progress=progress,
            exact=exact,
        )
        try:
            found.extend(stream)
        except (ProblemError, Stopped) as error:
            failed = error
        except KeyboardInterrupt:
            failed = Stopped(signal.SIGINT)
        # The problems ran together, so each gets an equal share of the time.
        share = (time.perf_counter() - began) / max(1, len(found))
        by_id = {
            result.problem_id: result._replace(
                ledger=result.ledger._replace(seconds=share)
            )
            for result in found
        }
        if failed is not None:
            order = [problem.id for problem in problems if problem.id in by_id]
            failed.results = tuple(by_id[name] for name in order)
            raise failed
        return [by_id[problem.id] for problem in problems]

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

        Arguments are checked at once, and the run starts when the first result is
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
            between runs. Their seconds are those since the previous result.

        Raises:
            PromptTooLongError: a prompt and the token limit exceed the context of the
                policy or the reward model; raised before anything is computed.
            ConfigurationError: the sampler cannot use N particles; a temperature,
                truncation or key is invalid; problems have the same id or an invalid
                one; a prompt has tokens that a model lacks; or there is not enough
                memory to read the longest prompt.
            CapabilityError: the sampler needs a capability that a reasoning target
                lacks.
            ProblemError: `extract` failed on solutions of some problems; raised after
                all others have ended.
        """
        if not isinstance(sampler, Sampler | Explorer):
            called = getattr(sampler, "__name__", None)
            hint = f"; call it: {called}()" if callable(sampler) and called else ""
            raise ConfigurationError(
                f"The engine runs a Sampler or an Explorer, and was given "
                f"{called or repr(sampler)}{hint}."
            )
        key = single_key(key)
        if not isinstance(num_particles, int | np.integer) or num_particles < 1:
            raise ConfigurationError(
                f"A run needs at least one particle, and num_particles is "
                f"{num_particles!r}."
            )
        if isinstance(sampler, Explorer):
            check_needs(sampler, ReasoningStore(self.target))
        self.check_fits(sampler, int(num_particles))
        method = method_of(sampler, num_particles, self.target.max_steps)
        method = method._replace(
            begin=Timed(method.begin, "decide"), turn=Timed(method.turn, "decide")
        )
        warm = self.temperature if temperature is None else temperature
        check_temperatures(warm, proposal_temperature)
        truncation = self.truncation if truncation is None else truncation
        if truncation is not None:
            truncation.check()
            truncation = truncation.as_arrays()
            truncation = None if truncation == Truncation() else truncation
        check_ids(problems)
        prompts = [self._encode(problem) for problem in problems]
        questions = self.target.reward.prepare([problem.prompt for problem in problems])
        if not problems:
            return iter(())
        keep_programs()
        unread: Any = None
        penalty = self.repetition_penalty
        params = ReasoningParams(
            self.policy,
            self.reward_model,
            unread,
            jnp.float32(warm),
            None if proposal_temperature is None else jnp.float32(proposal_temperature),
            truncation,
            None if penalty in (None, 1) else jnp.float32(penalty),
        )
        batch = pad_prompts(prompts)
        ids = id_words(problem.id for problem in problems)
        asked = jax.tree.map(np.asarray, questions)
        chosen = range(len(problems))
        count = len(self._parts)
        width = batch.tokens.shape[1]
        sizes = self.sizes_of(method.plan, -(-len(chosen) // count), width)
        prefill = self._prefill_bytes(sizes.prompts(width), width, questions)
        least = self._prefill_bytes(1, width, questions)
        check_prompts_fit(least, width, self.free_bytes())

        def lane_of(i: int, sizes: Sizes) -> Lane:
            part, programs = self._parts[i], self._programs[i]
            weights = (part_of(self.policy, part), part_of(self.reward_model, part))
            mine = params._replace(policy=weights[0], reward_model=weights[1])
            return Lane(programs, method, key, mine, batch, asked, ids, sizes, exact)

        def results() -> Iterator[Result]:
            began, before = time.perf_counter(), compilations()
            outcomes = Outcomes(
                sampler,
                self.target,
                params,
                num_particles,
                self.encode,
                self.decode,
                extract,
            )
            told = Progress(0, len(chosen), 0, 0.0)
            devices = [None] if self.mesh is None else self.mesh.local_devices

            def tell() -> None:
                if progress is not None:
                    written = sum(lane.num_written for lane in lanes)
                    seconds = time.perf_counter() - began
                    now = told._replace(generated_tokens=written, seconds=seconds)
                    progress(now)

            lanes = [
                Endurance(functools.partial(lane_of, i), sizes, chosen[i::count], tell)
                for i in range(min(count, len(chosen)))
            ]
            read = batch if questions is None else questions
            failures: dict[Any, Exception] = {}
            steps: dict[Any, int] = {}
            tracebacks: dict[Any, str] = {}
            invalid: list[Result] = []
            last, tokens_read = began, 0

            def report() -> Report:
                compiled = compilations().since(before)
                found = total(lane.report() for lane in lanes)
                found = over(found, time.perf_counter() - began, count)
                return found._replace(
                    programs=compiled.programs,
                    compile_seconds=compiled.seconds,
                    read=tokens_read,
                    model_programs=self._model_programs(),
                    prefill_bytes=prefill,
                    peak_bytes=max(peak_bytes(device) for device in devices),
                )

            for ended in run_concurrently([lane.run for lane in lanes]):
                told = told._replace(ended=told.ended + 1)
                problem = problems[ended.problem]
                if isinstance(ended, FailedProblem):
                    failures[problem.id] = ended.error
                    steps[problem.id] = ended.step
                    tracebacks[problem.id] = detach(ended.error)
                    self.report = report()
                    continue
                at = ended.problem
                lengths = int(batch.lengths[at]), int(read.lengths[at])
                now = time.perf_counter()
                seconds, last = now - last, now
                self.report = report()
                try:
                    solutions = outcomes.read(ended.particles)
                except Exception as error:
                    # The user's functions may fail on an unexpected text.
                    failures[problem.id] = error
                    tracebacks[problem.id] = detach(error)
                    continue
                result = outcomes.result(problem, ended, solutions, seconds, lengths)
                if result.diagnostics.num_invalid:
                    invalid.append(result)
                tokens_read += result.ledger.reward_tokens
                self.report = report()
                if len(lanes) == 1:
                    lanes[0].rest()
                yield result
            names = ", ".join(str(result.problem_id) for result in invalid[:5])
            more = ", ..." if len(invalid) > 5 else ""
            number = sum(result.diagnostics.num_invalid for result in invalid)
            subject = f"{len(invalid)} problems of this run ({names}{more})"
            warn_of_invalid(number, subject)
            if failures:
                raise ProblemError(failures, steps, tracebacks)

        return results()

    def _problems_of_a_lane(self, plan: Plan) -> int:
        """The most problems of a plan that one group of devices has in work."""
        return problems_in_work(plan, self.max_rows, self.max_stored)

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
            flops=self.policy.config.flops_per_token(0.0),
            step_tokens=self.target.max_step_tokens,
            max_rows=self.max_rows,
            most=self._problems_of_a_lane(plan),
        )

    def _encode(self, problem: Problem) -> list[int]:
        return encode_prompt(
            problem, self.encode, self.target, self._num_rows, self._context
        )
