"""The engine: one sampler on many problems at once, with few compiled programs.

Rows are the particles of P problems, N of each. A turn has three parts: the sampler's
``ask`` says whom to extend, ``advance`` (gather, propose, reward) does the models'
work, and ``tell`` weighs. Only ``advance`` is large, and it does not know the sampler:
its program is compiled once for each (P, N), whatever methods run. Sampler programs
are small; ``tell`` of one step and ``ask`` of the next are compiled as one.

The keys are those of :func:`tsi.run.run` under ``problem_key(key, problem.id)``, which
for integers is ``fold_in(key, problem.id)``, so that a problem's samples do not depend
on which problems share its batch, on how many rows a batch has, or on how many devices
hold them.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tsi.answers import answer_posterior, select
from tsi.degeneracy import common_past
from tsi.diagnostics import diagnose_run, diagnose_store, rewards_of
from tsi.engine_programs import (
    explorer_programs,
    on_one_device,
    sampler_programs,
    spread,
)
from tsi.errors import ConfigurationError, PromptTooLongError, warn_of_invalid
from tsi.explore import check_needs, extend_stored
from tsi.explorer import Explorer, problems_of_a_batch
from tsi.models.decoder import LanguageModel
from tsi.models.partition import keep_or_replicate
from tsi.models.thinking import is_thinking
from tsi.outcome import (
    Outcome,
    distinct,
    on_host,
    slot_costs,
    texts_by_step,
    weighed_answers,
)
from tsi.problem import Problem
from tsi.problem_ids import check_ids, id_words
from tsi.reasoning import Particles, ReasoningParams, ReasoningTarget, no_cost
from tsi.reasoning_store import ReasoningStore
from tsi.result import Result, ledger_of_first
from tsi.rewards import Prompts
from tsi.sampler import Sampler
from tsi.step_keys import AnyKey, single_key, step_keys
from tsi.vocabularies import check_prompt, check_rows

PROMPT_BUCKET = 16
"""Prompts are padded to a multiple of this, so that few shapes are compiled."""


class Engine:
    """Runs samplers on problems of one policy and one reward.

    Args:
        target: what is explored.
        policy: the language model's weights.
        reward: the reward model's weights, or None where the reward needs none.
        encode: a problem's prompt to token ids, chat template included.
        decode: token ids to text, end tokens dropped.
        temperature: of the policy; 0 takes the most likely token.
        max_rows: rows of a batch, P·N; a problem with more particles has its own batch.
        max_stored: prefixes that explorers store for a batch, by default 16 times that.
        mesh: devices to spread rows over, along its ``data`` axis; None for one device.
            Weights that lie on them already, divided or not, stay as they lie.

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
        self._shapes: set[tuple[int, ...]] = set()
        self._start = jax.jit(self._start_rows, static_argnums=0)
        self._advance = jax.jit(self._advance_rows, donate_argnums=2)
        self._store = ReasoningStore(target)
        self._start_stored = jax.jit(self._start_store, static_argnums=(0, 1))
        self._advance_stored = jax.jit(self._advance_store, donate_argnums=2)

    @property
    def num_programs(self) -> int:
        """Model programs so far: two for each shape of a batch."""
        return 2 * len(self._shapes)

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
        most = self.max_rows // num_particles
        if isinstance(sampler, Explorer):
            check_needs(sampler, self._store)
            plan = sampler.plan(num_particles, self.target.max_steps)
            most = problems_of_a_batch(plan, self.max_rows, self.max_stored)
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
        longest = max((len(p) for p in prompts), default=1)
        width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
        size = min(max(1, most), len(problems))
        results: list[Result] = []
        for start in range(0, len(problems), max(size, 1)):
            chosen = list(range(start, min(start + size, len(problems))))
            # The last batch is filled up, so that it needs no program of its own.
            filled = np.array(chosen + [chosen[-1]] * (size - len(chosen)))
            params = ReasoningParams(
                self.policy,
                self.reward,
                self._pad([prompts[i] for i in filled], width)._replace(
                    reward=jax.tree.map(lambda x, rows=filled: x[rows], questions)
                ),
                jnp.float32(warm),
                None
                if proposal_temperature is None
                else jnp.float32(proposal_temperature),
            )
            batch_results = self._run_batch(
                sampler,
                key,
                [problems[i] for i in filled],
                num_particles,
                params,
                extract,
                len(chosen),
            )
            results += batch_results
        invalid = [result for result in results if result.num_invalid]
        names = ", ".join(str(result.problem_id) for result in invalid[:5])
        more = ", ..." if len(invalid) > 5 else ""
        count = sum(result.num_invalid for result in invalid)
        warn_of_invalid(count, f"{len(invalid)} problems of this run ({names}{more})")
        return results

    def _run_batch(self, sampler, key, problems, num_particles, params, extract, real):
        began = time.perf_counter()
        ids = id_words(problem.id for problem in problems)
        explores = isinstance(sampler, Explorer)
        drive = self._run_explorer if explores else self._run_sampler
        host = drive(sampler, key, ids, num_particles, params)
        seconds = (time.perf_counter() - began) / real
        return [
            self._result(
                problem, sampler, host, p, num_particles, params, extract, seconds
            )
            for p, problem in enumerate(problems[:real])
        ]

    def _run_sampler(self, sampler, key, ids, num_particles, params):
        """Generations of N rows a problem."""
        size = len(ids.words)
        self._shapes.add((size, num_particles, params.prompts.tokens.shape[1]))
        begin, turn = sampler_programs(sampler, size, num_particles)
        key_steps, state, extended = begin(key, ids)
        particles = self._start(num_particles, params)
        infos, running = [], []
        live = np.ones(size, bool)
        for t in range(self.target.max_steps):
            step = jnp.int32(t)
            particles, potentials, corrections, finished = self._advance(
                key_steps, step, particles, *extended, params
            )
            state, extended, info, ongoing = turn(
                key_steps,
                step,
                state,
                jnp.asarray(live),
                extended[0],
                *on_one_device((potentials, corrections, finished)),
            )
            infos.append(info)
            running.append(live)
            live = np.asarray(ongoing)
            if not live.any():
                break
        particles = on_host(particles)
        return Outcome(particles, jax.device_get(state), infos, running, particles.cost)

    def _run_explorer(self, explorer, key, ids, num_particles, params):
        """Turns of W rows out of a store of M a problem."""
        size, limit = len(ids.words), self.target.max_steps
        plan = explorer.plan(num_particles, limit)
        self._shapes.add((size, *plan[:2], params.prompts.tokens.shape[1]))
        begin, turn = explorer_programs(explorer, size, num_particles, limit)
        key_steps, state, request = begin(key, ids)
        exploration = self._start_stored(plan.stored, plan.rows, params)
        infos, running = [], []
        live = np.ones(size, bool)
        for count in range(plan.turns):
            number = jnp.int32(count)
            exploration, reply = self._advance_stored(
                key_steps, number, exploration, request, params
            )
            state, request, info, ongoing = turn(
                key_steps, number, state, jnp.asarray(live), on_one_device(reply)
            )
            infos.append(info)
            running.append(live)
            live = np.asarray(ongoing)
            if not live.any():
                break
        stored, _, spent = exploration
        state = jax.device_get(state)
        # Each problem's members, out of rows that stand problem by problem.
        offsets = np.arange(size)[:, None] * plan.stored
        members = (np.asarray(state.members) + offsets).reshape(-1)
        particles = on_host(stored)._replace(cost=None)
        particles = jax.tree.map(lambda leaf: leaf[members], particles)
        return Outcome(particles, state, infos, running, jax.device_get(spent))

    def _start_store(self, stored: int, rows: int, params: ReasoningParams):
        particles = self._store.init(None, stored, params)
        problems = params.prompts.lengths.shape[0]
        depths = jnp.zeros(problems * stored, jnp.int32)
        spent = no_cost(problems * rows)
        return spread(self.mesh, particles), depths, spent

    def _advance_store(self, key_steps, count, exploration, request, params):
        stored, depths, spent = exploration
        keys = jax.vmap(lambda key: step_keys(key, count).propose)(key_steps)
        stored, depths, stepped = extend_stored(
            self._store,
            keys,
            spread(self.mesh, stored),
            depths,
            request,
            params,
            self.target.max_steps,
        )
        spent = jax.tree.map(jnp.add, spent, stepped.rows.cost)
        return (spread(self.mesh, stored), depths, spent), stepped.reply

    def _start_rows(self, num_particles: int, params: ReasoningParams) -> Particles:
        particles = self.target.init(None, num_particles, params)
        return spread(self.mesh, particles)

    def _advance_rows(self, key_steps, t, particles, ancestors, active, params):
        keys = jax.vmap(lambda key: step_keys(key, t).propose)(key_steps)
        particles = self.target.gather(spread(self.mesh, particles), ancestors)
        particles, corrections = self.target.propose_some(
            keys, t, particles, params, active
        )
        potentials = self.target.log_potential(t, particles, params)
        finished = self.target.finished(particles)
        return spread(self.mesh, particles), potentials, corrections, finished

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

    def _pad(self, prompts: list[list[int]], width: int) -> Prompts:
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = np.asarray([len(p) for p in prompts], np.int32)
        return Prompts(jnp.asarray(tokens), jnp.asarray(lengths))

    def _result(
        self, problem, sampler, host, p, num_particles, params, extract, seconds
    ) -> Result:
        mine = host.particles_of(p)
        state = jax.tree.map(lambda x: x[p], host.state)
        steps = np.flatnonzero(host.running[:, p])
        explores = isinstance(sampler, Explorer)
        no_target = sampler.path_log_weight is None
        infos = jax.tree.map(lambda x: x[steps, p], host.infos)
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
        slots = slot_costs(host.cost_of(p), p, self.target, params)
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
