"""The engine: one sampler on many problems at once, with few compiled programs.

Rows are the particles of P problems, N of each. A turn has three parts: the sampler's
``ask`` says whom to extend, ``advance`` (gather, propose, reward) does the models'
work, and ``tell`` weighs. Only ``advance`` is large, and it does not know the sampler:
its program is compiled once for each (P, N), whatever methods run. Sampler programs
are small; ``tell`` of one step and ``ask`` of the next are compiled as one.

The keys are those of :func:`tsi.run.run` under ``fold_in(key, problem.id)``, so that a
problem's samples do not depend on which problems share its batch, on how many rows a
batch has, or on how many devices hold them.
"""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsi.answers import answer_posterior, select
from tsi.batch import batch
from tsi.diagnostics import diagnose_run
from tsi.errors import ConfigurationError, PromptTooLongError
from tsi.models.llama import Llama, LlamaConfig, RewardModel
from tsi.problem import Problem
from tsi.reasoning import Particles, ReasoningParams, ReasoningTarget
from tsi.result import Result, SlotCosts, ledger_of_first
from tsi.rewards import Prompts
from tsi.run import step_keys
from tsi.sampler import Sampler

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
        mesh: devices to spread rows over, along its ``data`` axis; None for one device.

    Raises:
        ConfigurationError: the reward model reads token ids of another vocabulary.
    """

    def __init__(
        self,
        target: ReasoningTarget,
        policy: Llama,
        reward: Any,
        *,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
        temperature: float = 1.0,
        max_rows: int = 2048,
        mesh: Mesh | None = None,
    ) -> None:
        self.target, self.encode, self.decode = target, encode, decode
        self.temperature, self.max_rows, self.mesh = temperature, max_rows, mesh
        readers = [reward.config] if isinstance(reward, RewardModel) else []
        sizes = {config.vocab_size for config in (policy.config, *readers)}
        if len(sizes) > 1:
            raise ConfigurationError(
                f"The policy has {policy.config.vocab_size} token ids and the reward "
                f"model {reward.config.vocab_size}; it reads the policy's ids, so both "
                "must have one vocabulary. Choose a reward model of the policy's."
            )
        self._context = min(c.max_length for c in (policy.config, *readers))
        if mesh is not None:
            replicated = NamedSharding(mesh, PartitionSpec())
            policy, reward = jax.device_put((policy, reward), replicated)
        self.policy, self.reward = policy, reward
        self._shapes: set[tuple[int, int, int]] = set()
        self._start = jax.jit(self._start_rows, static_argnums=0)
        self._advance = jax.jit(self._advance_rows, donate_argnums=2)

    @property
    def num_programs(self) -> int:
        """Model programs so far: two for each (P, N, prompt width)."""
        return 2 * len(self._shapes)

    def run(
        self,
        sampler: Sampler,
        key: jax.Array,
        problems: Sequence[Problem],
        num_particles: int,
        *,
        extract: Callable[[str], str | None],
        temperature: float | None = None,
    ) -> list[Result]:
        """Run a sampler on every problem.

        Args:
            sampler: what decides.
            key: a typed key; problem i runs under ``fold_in(key, problem.id)``.
            problems: any number; they are run in batches of ``max_rows // N``.
            num_particles: N, for each problem.
            extract: canonical answer of a solution's text, or None.
            temperature: overrides the engine's.

        Returns:
            One result a problem, in order.

        Raises:
            PromptTooLongError: a prompt and the token limit exceed the context of the
                policy or the reward model; raised before anything is computed.
            ConfigurationError: the sampler cannot use N particles.
        """
        prompts = [self._encode(problem) for problem in problems]
        longest = max((len(p) for p in prompts), default=1)
        width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
        size = min(max(1, self.max_rows // num_particles), len(problems))
        warm = self.temperature if temperature is None else temperature
        results: list[Result] = []
        for start in range(0, len(problems), max(size, 1)):
            chosen = list(range(start, min(start + size, len(problems))))
            # The last batch is filled up, so that it needs no program of its own.
            filled = chosen + [chosen[-1]] * (size - len(chosen))
            params = ReasoningParams(
                self.policy,
                self.reward,
                self._pad([prompts[i] for i in filled], width),
                jnp.float32(warm),
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
        return results

    def _run_batch(self, sampler, key, problems, num_particles, params, extract, real):
        began = time.perf_counter()
        size = len(problems)
        ids = jnp.asarray([problem.id for problem in problems], jnp.uint32)
        self._shapes.add((size, num_particles, params.prompts.tokens.shape[1]))
        begin, turn = _control(sampler, size, num_particles)
        key_steps, state, ancestors = begin(key, ids)
        particles = self._start(num_particles, params)
        infos, running = [], []
        live = np.ones(size, bool)
        for t in range(self.target.max_steps):
            step = jnp.int32(t)
            particles, potentials, corrections, finished = self._advance(
                key_steps, step, particles, ancestors, params
            )
            state, ancestors, info, ongoing = turn(
                key_steps,
                step,
                state,
                jnp.asarray(live),
                *_on_one_device((potentials, corrections, finished)),
            )
            infos.append(info)
            running.append(live)
            live = np.asarray(ongoing)
            if not live.any():
                break
        infos = jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *infos)
        seconds = (time.perf_counter() - began) / real
        host = _Host(
            jax.device_get(particles._replace(prompt=(), suffix=(), reward_state=())),
            jax.device_get(state),
            infos,
            np.stack(running),
        )
        return [
            self._result(
                problem, sampler, host, p, num_particles, params, extract, seconds
            )
            for p, problem in enumerate(problems[:real])
        ]

    def _start_rows(self, num_particles: int, params: ReasoningParams) -> Particles:
        particles = self.target.init(None, num_particles, params)
        return _spread(self.mesh, particles)

    def _advance_rows(self, key_steps, t, particles, ancestors, params):
        keys = jax.vmap(lambda key: step_keys(key, t).propose)(key_steps)
        particles = self.target.gather(_spread(self.mesh, particles), ancestors)
        particles, corrections = self.target.propose(keys, t, particles, params)
        potentials = self.target.log_potential(t, particles, params)
        finished = self.target.finished(particles)
        return _spread(self.mesh, particles), potentials, corrections, finished

    def _encode(self, problem: Problem) -> list[int]:
        tokens, context = self.encode(problem.prompt), self._context
        limit = context - self.target.max_tokens
        if not 1 <= len(tokens) <= limit:
            raise PromptTooLongError(
                f"The prompt of problem {problem.id} has {len(tokens)} tokens; with "
                f"max_tokens={self.target.max_tokens} the models' context of "
                f"{context} leaves room for 1 to {limit}. Shorten the prompt or lower "
                "max_tokens."
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
        rows = slice(p * num_particles, (p + 1) * num_particles)
        mine = jax.tree.map(lambda x: x[rows], host.particles)
        state = jax.tree.map(lambda x: x[p], host.state)
        steps = np.flatnonzero(host.running[:, p])
        infos = jax.tree.map(lambda x: x[steps, p], host.infos)
        step_texts = [
            self._step_texts(*row)
            for row in zip(mine.tokens, mine.step_ends, mine.lengths, strict=True)
        ]
        texts = ["".join(parts) for parts in step_texts]
        answers = [
            None if cut else extract(text)
            for text, cut in zip(texts, mine.truncated, strict=True)
        ]
        rewards = 1.0 / (1.0 + np.exp(-mine.log_odds.astype(np.float64)))
        slots = self._slot_costs(mine.cost, int(params.prompts.lengths[p]), params)
        log_weights = np.asarray(state.log_weights)
        return Result(
            problem_id=problem.id,
            texts=texts,
            answers=answers,
            rewards=rewards,
            log_weights=log_weights,
            log_evidence=float(state.log_evidence),
            ess=infos.ess,
            ancestors=infos.ancestors,
            step_texts=step_texts,
            num_recoveries=int(infos.num_recoveries.sum()),
            num_invalid=int(infos.num_invalid.sum()),
            num_truncated=int(mine.truncated.sum()),
            answer_posterior=answer_posterior(answers, log_weights),
            selected=select(sampler.select, answers, log_weights, rewards),
            ledger=ledger_of_first(slots, num_particles, seconds),
            slots=slots,
            truncated=mine.truncated,
            **diagnose_run(sampler, state, infos, answers),
        )

    def _step_texts(self, tokens, step_ends, length) -> list[str]:
        ends = step_ends[(step_ends > 0) & (step_ends <= length)]
        cuts = [0, *sorted(set(ends.tolist()))]
        return [self.decode(tokens[a:b].tolist()) for a, b in itertools.pairwise(cuts)]

    def _slot_costs(self, cost, prompt_length: int, params) -> SlotCosts:
        policy, reader = self.policy.config, self.target.reward.reader(params)
        prompt_context = prompt_length * (prompt_length + 1) / 2
        reads_prompt = reader is not None and self.target.reward.reads_prompts
        return SlotCosts(
            generated_tokens=cost.generated,
            reward_tokens=cost.reward_read,
            flops=_flops(policy, cost.generated, cost.generated_context, head=True),
            reward_flops=_flops(reader, cost.reward_read, cost.reward_context),
            prompt_reward_tokens=prompt_length if reads_prompt else 0,
            prompt_flops=float(_flops(policy, prompt_length, prompt_context)),
            prompt_reward_flops=(
                float(_flops(reader, prompt_length, prompt_context))
                if reads_prompt
                else 0.0
            ),
        )


class _Host:
    """A batch's outcome in numpy: particles, sampler state, infos, live problems."""

    def __init__(self, particles, state, infos, running):
        self.particles, self.state = particles, state
        self.infos, self.running = infos, running


@functools.lru_cache(maxsize=256)
def _control(sampler: Sampler, problems: int, num_particles: int):
    """The sampler's two programs for a batch of problems."""
    lifted = batch(sampler, problems)

    @jax.jit
    def begin(key, ids):
        # fold_in and split exactly as tsi.run does, for every problem.
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(ids)
        key_init, key_steps = keys[:, 0], keys[:, 1]
        start = jax.vmap(jax.random.fold_in, (0, None))(key_init, 0)
        state = lifted.init(start, num_particles)
        asks = jax.vmap(lambda k: step_keys(k, 0).ask)(key_steps)
        state, ancestors = lifted.ask(asks, state)
        return key_steps, state, ancestors

    @jax.jit
    def turn(key_steps, t, state, live, potentials, corrections, finished):
        def of_live(new, old, still):
            def keep(a, b):
                return jnp.where(still.reshape(-1, *[1] * (a.ndim - 1)), a, b)

            return jax.tree.map(keep, new, old)

        tells = jax.vmap(lambda k: step_keys(k, t).tell)(key_steps)
        told, info = lifted.tell(tells, state, potentials, corrections, finished)
        # A problem that has ended is left as it was, as tsi.run would have left it.
        state = of_live(told, state, live)
        ongoing = live & ~jnp.all(finished.reshape(problems, -1), axis=1)
        asks = jax.vmap(lambda k: step_keys(k, t + 1).ask)(key_steps)
        asked, ancestors = lifted.ask(asks, state)
        state = of_live(asked, state, ongoing)
        stay = jnp.arange(problems * num_particles, dtype=ancestors.dtype)
        ancestors = jnp.where(jnp.repeat(ongoing, num_particles), ancestors, stay)
        return state, ancestors, info, ongoing

    return begin, turn


def _on_one_device(tree: Any) -> Any:
    """Bring the few numbers a sampler sees together, whatever devices made them."""
    return jax.tree.map(jnp.asarray, jax.device_get(tree))


def _spread(mesh: Mesh | None, particles: Particles) -> Particles:
    """Lay rows out along the mesh's ``data`` axis."""
    if mesh is None:
        return particles
    rows, devices = particles.lengths.shape[0], mesh.shape["data"]

    def place(x: jax.Array) -> jax.Array:
        # Rows lead everywhere but in caches, where they follow the layers.
        axis = next((i for i, n in enumerate(x.shape[:2]) if n == rows), None)
        spec: list[str | None] = [None] * x.ndim
        if axis is not None and rows % devices == 0:
            spec[axis] = "data"
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(place, particles)


def _flops(config: LlamaConfig | None, tokens, context, *, head: bool = False):
    """FLOPs of so many tokens that attended to so many positions in all.

    Tokens that are only read need no logits: a reward's single number a step is left
    out as well.
    """
    if config is None:
        return np.zeros_like(context)
    dense = config.flops_per_token(0.0, head=head)
    position = config.flops_per_token(1.0, head=head) - dense
    return dense * tokens + position * context
