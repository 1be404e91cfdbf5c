"""The engine: one sampler on many problems, each at its own pace.

A :class:`tsi.engine.lane.Lane` does the work on one group of devices, and the problems
are divided among the lanes. The programs that hold models are compiled for numbers of
rows and positions, whatever methods run; those of samplers are small.

Compiled programs are kept between processes: see
:func:`tsi.engine.compilation.keep_programs`.

The keys are those of :func:`tsi.run.run` under ``problem_key(key, problem.id)``, which
for integers is ``fold_in(key, problem.id)``, so that a problem's samples do not depend
on which problems share its batch, on how many rows a batch has, or on how many devices
hold them.
"""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tsi.answers import answer_posterior, select
from tsi.degeneracy import common_past
from tsi.diagnostics import diagnose_run, diagnose_store, rewards_of
from tsi.engine.compilation import compilations, keep_programs
from tsi.engine.lane import Lane
from tsi.engine.lanes import divide, part_of
from tsi.engine.methods import method_of
from tsi.engine.programs import Programs
from tsi.engine.report import Report, total
from tsi.engine.sizes import Sizes
from tsi.errors import ConfigurationError, PromptTooLongError, warn_of_invalid
from tsi.explore import check_needs
from tsi.explorer import Explorer
from tsi.models.decoder import LanguageModel
from tsi.models.partition import keep_or_replicate
from tsi.models.thinking import is_thinking
from tsi.outcome import distinct, slot_costs, texts_by_step, weighed_answers
from tsi.problem import Filler, Problem
from tsi.problem_ids import check_ids, id_words
from tsi.reasoning import ReasoningParams, ReasoningTarget
from tsi.reasoning_store import ReasoningStore
from tsi.result import Result, ledger_of_first
from tsi.rewards import Prompts
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey, single_key
from tsi.vocabularies import check_prompt, check_rows

BLOCK = 16
"""Positions of a block, of models whose caches are large."""
PROMPT_BUCKET = 16
"""Prompts are padded to a multiple of this, so that few shapes are compiled."""
BURST = 16
"""The most tokens that are written before the host looks."""
PART = 0.125
"""The share of the slots that must have ended their steps for the host to look."""
IN_FLIGHT = 2
"""Rows in work for every slot, so that a slot does not wait for a problem's slowest."""
CHEAP = 2e9
"""FLOPs of a token of all slots below which the host is the slower of the two."""
READS = 8
"""Rows whose steps are read together: with a question of 30 tokens that is a matrix
large enough for two cores, and few of its rows are padding."""
PREFILL = 16384
"""Tokens of prompts that are read together."""


class Engine:
    """Runs samplers on problems of one policy and one reward.

    Attributes:
        report: of the last run; None before the first.

    Args:
        target: what is explored.
        policy: the language model's weights.
        reward: the reward model's weights, or None where the reward needs none.
        encode: a problem's prompt to token ids, chat template included.
        decode: token ids to text, end tokens dropped.
        temperature: of the policy; 0 takes the most likely token.
        max_rows: rows that write tokens together on one device, or group of devices.
        max_stored: prefixes that explorers store at once, by default 16 times that.
        mesh: devices: problems are divided along its ``data`` axis, weights and heads
            along ``model``; None for one device. Weights that lie on them already,
            divided or not, stay as they lie.

    Raises:
        ConfigurationError: the reward model has no row for a token that the policy may
            write. Whether it takes tokens for the same text, only tokenizers can tell:
            see :func:`tsi.vocabularies.first_difference`.
    """

    def __init__(
        self,
        target: ReasoningTarget,
        policy: LanguageModel,
        reward: Any,
        *,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
        temperature: float = 1.0,
        max_rows: int = 2048,
        max_stored: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.target, self.encode, self.decode = target, encode, decode
        self.temperature, self.max_rows, self.mesh = temperature, max_rows, mesh
        self.max_stored = 16 * max_rows if max_stored is None else max_stored
        readers = [reward.config] if target.reward.reads_ids else []
        check_rows(target.boundary, policy.config, readers)
        self._num_rows = min(c.vocab_size for c in (policy.config, *readers))
        self._context = min(c.max_length for c in (policy.config, *readers))
        if mesh is not None:
            policy, reward = keep_or_replicate((policy, reward), mesh)
        self.policy, self.reward = policy, reward
        keep_programs()
        self._parts = divide(mesh)
        self._programs = [Programs(target, part) for part in self._parts]
        self.report: Report | None = None

    @property
    def num_programs(self) -> int:
        """Model programs so far: those that read prompts, write, and read steps."""
        return sum(programs.count() for programs in self._programs)

    def check(self, problems: Sequence[Problem]) -> None:
        """Refuse, before anything is computed, what cannot be run.

        Raises:
            ConfigurationError: problems share an id or have none, or a prompt has
                tokens that a model has not.
            PromptTooLongError: a prompt and the token limit exceed the context of the
                policy or the reward model.
            ConfigurationError: a prompt has a token that the policy has not.
        """
        check_ids(problems)
        for problem in problems:
            self._encode(problem)

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
    ) -> list[Result]:
        """Run a sampler on every problem.

        Args:
            sampler: what decides.
            key: of either style; a problem runs under ``problem_key(key, problem.id)``.
            problems: any number; they are run in batches of ``max_rows // W``, W the
                rows of one problem, as long as the prefixes that are stored fit too.
            num_particles: N, for each problem.
            extract: canonical answer of a solution's text, or None.
            temperature: overrides the engine's.
            proposal_temperature: draw tokens at this temperature and correct for it;
                None draws from the policy itself.

        Returns:
            One result a problem, in order.

        Raises:
            PromptTooLongError: a prompt and the token limit exceed the context of the
                policy or the reward model; raised before anything is computed.
            ConfigurationError: the sampler cannot use N particles, a temperature or key
                is none, problems share an id or have none, or a prompt has tokens that
                a model has not.
            CapabilityError: it needs what a reasoning target has not.
        """
        key = single_key(key)
        if num_particles < 1:
            raise ConfigurationError(
                f"A run needs at least one particle, and num_particles is "
                f"{num_particles}."
            )
        if isinstance(sampler, Explorer):
            check_needs(sampler, ReasoningStore(self.target))
        method = method_of(sampler, num_particles, self.target.max_steps)
        warm = self.temperature if temperature is None else temperature
        for name, value in (
            ("temperature", warm),
            ("proposal_temperature", proposal_temperature),
        ):
            if value is not None and not 0.0 <= value < math.inf:
                raise ConfigurationError(
                    f"{name} is {value}; give a finite number, 0 for greedy or above."
                )
        if proposal_temperature == 0.0 and warm > 0.0:
            raise ConfigurationError(
                "A proposal of temperature 0 draws one token where the policy at "
                f"temperature {warm} may draw any, so no weight could correct it. Give "
                "a positive proposal_temperature."
            )
        check_ids(problems)
        prompts = [self._encode(problem) for problem in problems]
        questions = self.target.reward.prepare([problem.prompt for problem in problems])
        if not problems:
            return []
        unread: Any = None
        params = ReasoningParams(
            self.policy,
            self.reward,
            unread,
            jnp.float32(warm),
            None if proposal_temperature is None else jnp.float32(proposal_temperature),
        )
        batch = self._pad(prompts)
        ids = id_words(problem.id for problem in problems)
        asked = jax.tree.map(np.asarray, questions)
        # Fillers have another's id and want its result.
        chosen = [i for i, x in enumerate(problems) if not isinstance(x, Filler)]
        count = len(self._parts)
        sizes = self._sizes(method.plan, -(-len(chosen) // count))

        def lane_of(i: int) -> Lane:
            part, programs = self._parts[i], self._programs[i]
            weights = (part_of(self.policy, part), part_of(self.reward, part))
            mine = params._replace(policy=weights[0], reward=weights[1])
            return Lane(programs, method, key, mine, batch, asked, ids, sizes)

        began, before = time.perf_counter(), compilations()
        lanes = [lane_of(i) for i in range(min(count, len(chosen)))]
        work = [(lane, chosen[i::count]) for i, lane in enumerate(lanes)]
        ended = _side_by_side(lambda lane, mine: list(lane.run(mine)), work)
        compiled = compilations().since(before)
        self.report = total(lane.report() for lane in lanes)._replace(
            programs=compiled.programs, compile_seconds=compiled.seconds
        )
        seconds = (time.perf_counter() - began) / len(chosen)
        found: list[Any] = []
        read = batch if questions is None else questions
        for each in ended:
            lengths = [int(np.asarray(x.lengths)[each.problem]) for x in (batch, read)]
            found.append(
                self._result(
                    problems[each.problem],
                    sampler,
                    each,
                    num_particles,
                    params,
                    extract,
                    seconds,
                    lengths,
                )
            )
        by_id = {result.problem_id: result for result in found}
        results: list[Result] = [by_id[problem.id] for problem in problems]
        invalid = [result for result in found if result.num_invalid]
        names = ", ".join(str(result.problem_id) for result in invalid[:5])
        more = ", ..." if len(invalid) > 5 else ""
        count = sum(result.num_invalid for result in invalid)
        warn_of_invalid(count, f"{len(invalid)} problems of this run ({names}{more})")
        return results

    def _sizes(self, plan: Any, problems: int) -> Sizes:
        """How much a lane should have in work for a method's plan."""
        most = max(1, IN_FLIGHT * self.max_rows // plan.rows)
        if plan.stored:
            most = max(1, min(most, self.max_stored // plan.stored))
        places = 1
        while places < min(problems, most):
            places *= 2
        places = min(places, most)
        rows = min(problems, most) * plan.rows
        flops = self.policy.config.flops_per_token(0.0) * min(self.max_rows, rows)
        shrinks = flops >= CHEAP
        # Half of the rows wait for a slot, so that no slot waits for a row.
        wanted = max(rows // 2, min(rows, 16)) if shrinks else rows
        slots = 1
        while slots < wanted:
            slots *= 2
        return Sizes(
            min(slots, self.max_rows),
            places,
            BLOCK if shrinks else 4 * BLOCK,
            min(self.target.max_step_tokens, BURST),
            PART if shrinks else 1.0,
            min(slots, READS, self.max_rows) if shrinks else min(slots, self.max_rows),
            PREFILL,
            shrinks,
        )

    def _encode(self, problem: Problem) -> list[int]:
        tokens, context = self.encode(problem.prompt), self._context
        check_prompt(problem.id, tokens, self._num_rows)
        beyond = getattr(self.target.reward, "positions_beyond", 0)
        limit = context - self.target.max_tokens - beyond
        if not 1 <= len(tokens) <= limit:
            question = f" and a question of {beyond} to the judge" if beyond else ""
            room = f"room for 1 to {limit}" if limit > 0 else "no room for a prompt"
            raise PromptTooLongError(
                f"The prompt of problem {problem.id!r} has {len(tokens)} tokens; with "
                f"max_tokens={self.target.max_tokens}{question} the models' context of "
                f"{context} leaves {room}. Shorten the prompt or lower max_tokens."
            )
        return tokens

    def _pad(self, prompts: list[list[int]]) -> Any:
        width = -(-max(map(len, prompts)) // PROMPT_BUCKET) * PROMPT_BUCKET
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths: Any = np.asarray([len(p) for p in prompts], np.int32)
        padded: Any = tokens
        return Prompts(padded, lengths)

    def _result(
        self, problem, sampler, ended, num_particles, params, extract, seconds, lengths
    ) -> Result:
        _, mine, state, infos, cost = ended
        explores = isinstance(sampler, Explorer)
        no_target = sampler.path_log_weight is None
        step_texts = texts_by_step(self.decode, mine)
        texts = ["".join(parts) for parts in step_texts]
        whole = mine.finished & ~mine.truncated
        answers = [
            extract(text) if ended else None
            for text, ended in zip(texts, whole, strict=True)
        ]
        log_weights = np.asarray(state.log_weights)
        num_truncated = int(mine.truncated.sum())
        if explores:
            answers = weighed_answers(answers, log_weights)
            num_truncated = distinct(state.members, mine.truncated)
        rewards = rewards_of(mine.log_odds)
        slots = slot_costs(cost, lengths[0], lengths[1], self.target, params)
        return Result(
            problem_id=problem.id,
            texts=texts,
            answers=answers,
            rewards=rewards,
            log_weights=log_weights,
            log_evidence=(math.nan if no_target else float(state.log_evidence)),
            ess=infos.ess,
            ancestors=common_past(step_texts) if explores else infos.ancestors,
            step_texts=step_texts,
            num_recoveries=int(infos.num_recoveries.sum()),
            num_invalid=int(infos.num_invalid.sum()),
            num_truncated=num_truncated,
            answer_posterior=answer_posterior(answers, log_weights),
            selected=select(sampler.select, answers, log_weights, rewards),
            ledger=ledger_of_first(slots, len(slots.flops), seconds)._replace(
                rollouts=num_particles
            ),
            slots=slots,
            truncated=mine.truncated,
            thinking=self._thinking(problem, mine.truncated, texts),
            **(
                diagnose_store(sampler, answers, state, step_texts)
                if explores
                else diagnose_run(sampler, state, infos, answers)
            ),
        )

    def _thinking(self, problem, truncated, texts) -> np.ndarray:
        """Which particles were cut at a limit before their thinking ended."""
        thinking = np.zeros(len(texts), bool)
        if truncated.any():
            prompt = self.decode(self.encode(problem.prompt))
            for row in np.flatnonzero(truncated):
                thinking[row] = is_thinking(texts[row], prompt)
        return thinking


def _side_by_side(run: Callable[..., list], work: list[tuple]) -> list:
    """What `run` gives for each, at once, in order and in one list."""
    if len(work) == 1:
        return run(*work[0])
    with ThreadPoolExecutor(len(work)) as threads:
        found = threads.map(lambda arguments: run(*arguments), work)
        return [item for items in found for item in items]
