"""A target with known answers: a small Markov language model with a score table.

    p(x_{1:T}) = initial[x_1] prod_t transition[x_{t-1}, x_t],
    log G_t(x_{1:t}) = log_potentials[t, x_t],

A path stops after the end symbol; without an end symbol every path has `max_steps`
symbols. The number of paths is small, so the evidence and the posterior for any path
weight are computed by enumeration.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.errors import ConfigurationError
from tsi.step_keys import AnyKey, single_key
from tsi.target import where_rows
from tsi.targets.enumeration import enumerate_paths, log_of
from tsi.weights import weight_dtype


class TabularParticles(NamedTuple):
    """Paths so far.

    Attributes:
        symbols: [N, T] int32, -1 after the last symbol.
        length: number of steps taken, [N].
        finished: [N].
    """

    symbols: Int[Array, "N T"]
    length: Int[Array, "N"]
    finished: Bool[Array, "N"]


class TabularParams(NamedTuple):
    """The tables as arrays, so that one compiled program serves all tables of a shape.

    Attributes:
        log_initial: [K].
        log_transition: [K, K].
        log_proposal_initial: [K].
        log_proposal_transition: [K, K], or [T, K, K] if it depends on the step.
        log_potentials: [T, K].
        end: the symbol that ends a path, -1 for none.
        log_scale: [T], see `TabularTarget`.
        idle: see `TabularTarget`.
    """

    log_initial: Float[Array, "K"]
    log_transition: Float[Array, "K K"]
    log_proposal_initial: Float[Array, "K"]
    log_proposal_transition: Float[Array, "K K"] | Float[Array, "T K K"]
    log_potentials: Float[Array, "T K"]
    end: Int[Array, ""]
    log_scale: Float[Array, "T"]
    idle: Float[Array, ""]


class TabularTruth(NamedTuple):
    """The results of enumeration, in float64.

    Attributes:
        symbols: every path of positive probability, [M, T], -1 after its end.
        log_prob: log p(path), [M].
        log_evidence: log sum_x p(x) exp(path_log_weight(x)).
        posterior: p(x) exp(path_log_weight(x)) / evidence, [M]; zero everywhere if the
            evidence is zero.
    """

    symbols: np.ndarray
    log_prob: np.ndarray
    log_evidence: float
    posterior: np.ndarray


def _log_chain(
    symbols: Int[Array, "N T"],
    log_initial: Float[Array, "K"],
    log_transition: Float[Array, "*T K K"],
) -> Float[Array, "N"]:
    """Log probability of paths under a Markov chain; -1 marks missing symbols."""
    previous, current = symbols[:, :-1], symbols[:, 1:]
    if log_transition.ndim == 3:
        steps = log_transition[jnp.arange(1, symbols.shape[1]), previous, current]
    else:
        steps = log_transition[previous, current]
    log_p = jnp.concatenate([log_initial[symbols[:, :1]], steps], axis=1)
    return jnp.sum(jnp.where(symbols >= 0, log_p, 0.0), axis=1)


class TabularTarget:
    """A Markov language model over K symbols and at most T steps.

    Args:
        initial: probabilities of the first symbol, [K].
        transition: probabilities of the next symbol given the last, [K, K].
        log_potentials: log potential of a prefix whose last symbol, at step t, is k:
            [T, K]; T is `max_steps`. -inf makes a prefix impossible.
        end: the symbol that ends a path, or None.
        proposal_initial: q of the first symbol, [K]; by default the policy.
        proposal_transition: q of the next symbol, [K, K], or [T, K, K] with a table per
            step, of which the first is unused; by default the policy.
        log_scale: log of a factor on the policy's probability of each step, [T] or one
            number: a policy that is not normalised. Corrections, log p and the evidence
            have these factors.
        idle: potential and correction that are reported for a particle that had
            finished before the step. A sampler must ignore them.

    Raises:
        ConfigurationError: if shapes disagree, a row does not sum to one, or the
            proposal is zero where the policy is positive.
    """

    def __init__(
        self,
        initial: Any,
        transition: Any,
        log_potentials: Any,
        *,
        end: int | None = None,
        proposal_initial: Any = None,
        proposal_transition: Any = None,
        log_scale: Any = 0.0,
        idle: float = 0.0,
    ) -> None:
        self.initial = np.asarray(initial, np.float64)
        self.transition = np.asarray(transition, np.float64)
        self.log_potentials = np.asarray(log_potentials, np.float64)
        self.end = end
        self.max_steps, self.num_symbols = self.log_potentials.shape
        self.proposal_initial = self._proposal_or_policy(proposal_initial, self.initial)
        self.proposal_transition = self._proposal_or_policy(
            proposal_transition, self.transition
        )
        self.log_scale = np.full(self.max_steps, log_scale, np.float64)
        self.idle = idle
        self._check()

    @staticmethod
    def _proposal_or_policy(proposal: Any, policy: np.ndarray) -> np.ndarray:
        return policy if proposal is None else np.asarray(proposal, np.float64)

    def _check(self) -> None:
        size = self.num_symbols
        square = (size, size)
        by_step = self.proposal_transition.ndim == 3
        pairs = (
            ("initial", self.initial, self.proposal_initial, (size,), (size,)),
            (
                "transition",
                self.transition,
                self.proposal_transition,
                square,
                (self.max_steps, *square) if by_step else square,
            ),
        )
        for name, policy, proposal, *shapes in pairs:
            for table, shape in zip((policy, proposal), shapes, strict=True):
                sums_to_one = np.allclose(table.sum(-1), 1.0, atol=1e-6)
                if table.shape != shape or not sums_to_one or (table < 0).any():
                    raise ConfigurationError(
                        f"TabularTarget: `{name}` must be of shape {shape} with rows "
                        f"of probabilities; got shape {table.shape} and row sums "
                        f"{table.sum(-1)}."
                    )
            if ((policy > 0) & (proposal == 0)).any():
                raise ConfigurationError(
                    f"TabularTarget: the proposal of `{name}` is zero where the policy "
                    "is positive, which no weight can correct. Give every symbol that "
                    "the policy allows a positive probability."
                )

    @property
    def params(self) -> TabularParams:
        """The tables as arrays: the default of all methods."""
        dtype = weight_dtype()
        return TabularParams(
            log_initial=jnp.asarray(log_of(self.initial), dtype),
            log_transition=jnp.asarray(log_of(self.transition), dtype),
            log_proposal_initial=jnp.asarray(log_of(self.proposal_initial), dtype),
            log_proposal_transition=jnp.asarray(
                log_of(self.proposal_transition), dtype
            ),
            log_potentials=jnp.asarray(self.log_potentials, dtype),
            end=jnp.asarray(-1 if self.end is None else self.end, jnp.int32),
            log_scale=jnp.asarray(self.log_scale, dtype),
            idle=jnp.asarray(self.idle, dtype),
        )

    def init(
        self,
        key: AnyKey,
        num_particles: int,
        params: TabularParams | None = None,
    ) -> TabularParticles:
        """N empty paths."""
        return TabularParticles(
            jnp.full((num_particles, self.max_steps), -1, jnp.int32),
            jnp.zeros(num_particles, jnp.int32),
            jnp.zeros(num_particles, bool),
        )

    def propose(
        self,
        key: AnyKey,
        t: Int[Array, ""] | Int[Array, "N"] | int,
        particles: TabularParticles,
        params: TabularParams | None = None,
    ) -> tuple[TabularParticles, Float[Array, "N"]]:
        """Extend each unfinished path by a symbol; particle i uses fold_in(key, i)."""
        tables = self.params if params is None else params
        key = single_key(key)
        symbols, _, finished = particles
        slots = jnp.arange(symbols.shape[0])
        t = jnp.broadcast_to(jnp.asarray(t, jnp.int32), slots.shape)
        last = symbols[slots, jnp.maximum(t - 1, 0)]
        first = (t == 0)[:, None]
        log_p = jnp.where(first, tables.log_initial, tables.log_transition[last])
        proposal = tables.log_proposal_transition
        row = proposal[last]
        if proposal.ndim == 3:
            row = proposal[jnp.minimum(t, self.max_steps - 1), last]
        log_q = jnp.where(first, tables.log_proposal_initial, row)
        keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots)
        new_symbols = jax.vmap(jax.random.categorical)(keys, log_q).astype(jnp.int32)
        scale = tables.log_scale[jnp.minimum(t, self.max_steps - 1)]
        correction = (log_p - log_q)[slots, new_symbols] + scale
        extended = self._append_symbol(particles, t, new_symbols, tables)
        return extended, jnp.where(finished, tables.idle, correction)

    def _append_symbol(
        self,
        particles: TabularParticles,
        t: Int[Array, "N"],
        new_symbols: Int[Array, "N"],
        tables: TabularParams,
    ) -> TabularParticles:
        """Append the symbol of step t to unfinished paths."""
        symbols, length, finished = particles
        is_current = (jnp.arange(self.max_steps) == t[:, None]) & ~finished[:, None]
        return TabularParticles(
            jnp.where(is_current, new_symbols[:, None], symbols),
            jnp.where(finished, length, t + 1),
            finished | (new_symbols == tables.end) | (t + 1 >= self.max_steps),
        )

    def log_potential(
        self,
        t: Int[Array, ""] | Int[Array, "N"] | int,
        particles: TabularParticles,
        params: TabularParams | None = None,
    ) -> Float[Array, "N"]:
        """The table entry of step t and the latest symbol."""
        tables = self.params if params is None else params
        slots = jnp.arange(particles.symbols.shape[0])
        t = jnp.broadcast_to(jnp.asarray(t, jnp.int32), slots.shape)
        last = particles.symbols[slots, particles.length - 1]
        is_latest_step = particles.length == t + 1
        return jnp.where(is_latest_step, tables.log_potentials[t, last], tables.idle)

    def log_prob(
        self, particles: TabularParticles, params: TabularParams | None = None
    ) -> Float[Array, "N"]:
        """log p of each path so far."""
        tables = self.params if params is None else params
        log_p = _log_chain(particles.symbols, tables.log_initial, tables.log_transition)
        scales = jnp.where(particles.symbols >= 0, tables.log_scale, 0.0)
        return log_p + jnp.sum(scales, axis=1)

    def log_proposal(
        self, particles: TabularParticles, params: TabularParams | None = None
    ) -> Float[Array, "N"]:
        """log q of each path so far."""
        tables = self.params if params is None else params
        return _log_chain(
            particles.symbols,
            tables.log_proposal_initial,
            tables.log_proposal_transition,
        )

    def truncate(
        self,
        particles: TabularParticles,
        depths: Int[Array, "N"],
        params: TabularParams | None = None,
    ) -> TabularParticles:
        """The first `depths` symbols of each path."""
        is_kept = jnp.arange(self.max_steps) < depths[:, None]
        shorter = depths < particles.length
        return TabularParticles(
            jnp.where(is_kept, particles.symbols, -1),
            jnp.minimum(particles.length, depths),
            particles.finished & ~shorter,
        )

    def replay(
        self,
        t: Int[Array, ""] | Int[Array, "N"] | int,
        particles: TabularParticles,
        sources: TabularParticles,
        params: TabularParams | None = None,
    ) -> tuple[TabularParticles, Float[Array, "N"]]:
        """Extend each unfinished path by symbol t of its source; also log p of it."""
        tables = self.params if params is None else params
        slots = jnp.arange(particles.symbols.shape[0])
        t = jnp.broadcast_to(jnp.asarray(t, jnp.int32), slots.shape)
        symbol = sources.symbols[slots, jnp.minimum(t, self.max_steps - 1)]
        step_mask = ~particles.finished & (sources.length > t)
        last = particles.symbols[slots, jnp.maximum(t - 1, 0)]
        log_p = jnp.where(
            t == 0, tables.log_initial[symbol], tables.log_transition[last, symbol]
        )
        log_p += tables.log_scale[jnp.minimum(t, self.max_steps - 1)]
        extended = self._append_symbol(particles, t, symbol, tables)
        rows = where_rows(step_mask, extended, particles)
        return rows, jnp.where(step_mask, log_p, 0.0)

    def finished(self, particles: TabularParticles) -> Bool[Array, "N"]:
        """Whether each path has reached the end symbol or the step limit."""
        return particles.finished

    def gather(
        self, particles: TabularParticles, ancestors: Int[Array, "N"]
    ) -> TabularParticles:
        """The paths at `ancestors`."""
        return jax.tree.map(lambda leaf: leaf[ancestors], particles)

    def path_codes(
        self, symbols: Int[Array, "*batch T"] | np.ndarray
    ) -> Int[np.ndarray, "*batch"]:
        """A number for each path, equal if and only if the paths are equal.

        Raises:
            ConfigurationError: if there are more paths than 64-bit numbers.
        """
        base = self.num_symbols + 1
        if base**self.max_steps >= 2**63:
            raise ConfigurationError(
                f"Paths of {self.max_steps} steps over {self.num_symbols} symbols "
                "cannot be numbered in 64 bits. Use a smaller table."
            )
        places = np.int64(base) ** np.arange(self.max_steps, dtype=np.int64)
        return np.sum((np.asarray(symbols, np.int64) + 1) * places, axis=-1)

    def paths(self, max_steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Every path of positive probability, [M, T], and its log p without scale, [M].

        Args:
            max_steps: step limit; paths are cut there, as in a run with that limit.
        """
        limit = self.max_steps if max_steps is None else min(max_steps, self.max_steps)
        return enumerate_paths(
            self.initial, self.transition, self.end, limit, self.max_steps
        )

    def truth(
        self,
        path_log_weight: Callable[..., Any],
        *,
        power: float = 1.0,
        max_steps: int | None = None,
    ) -> TabularTruth:
        """Evidence and posterior by enumeration.

        Args:
            path_log_weight: as in `tsi.sampler.Sampler`.
            power: exponent of p in the target.
            max_steps: step limit of the run to compare with.
        """
        symbols, log_prob = self.paths(max_steps)
        step_mask = symbols >= 0
        log_prob = log_prob + np.where(step_mask, self.log_scale, 0.0).sum(1)
        steps = np.arange(self.max_steps)
        log_potentials = np.where(step_mask, self.log_potentials[steps, symbols], 0.0)
        log_weights = np.asarray(
            path_log_weight(
                jnp.asarray(log_potentials, weight_dtype()), jnp.asarray(step_mask)
            ),
            np.float64,
        )
        log_joint = power * log_prob + log_weights
        if np.all(log_joint == -np.inf):
            return TabularTruth(symbols, log_prob, -np.inf, np.zeros(len(log_joint)))
        # A path weight may be NaN; the caller reports it.
        with np.errstate(invalid="ignore"):
            log_evidence = float(np.logaddexp.reduce(log_joint))
            posterior = np.exp(log_joint - log_evidence)
        return TabularTruth(symbols, log_prob, log_evidence, posterior)
