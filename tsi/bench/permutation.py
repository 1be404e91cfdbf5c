"""Check that a sampler's decisions do not depend on the order of the particles.

The particles are given in two orders, one the reverse of the other, once with some of
them finished and once with none. Averaged over many keys, the offspring of each
particle must have the same weight in both orders. A reversal is used because it maps
islands of neighbours onto islands, so that methods with islands can be tested, and
because systematic resampling is invariant to it.

For an explorer, the rows of the first turn are reversed, since all of them extend the
empty prefix. In both orders each prefix must be extended equally often in later turns,
and have the same weight in the result. The check does not apply if a turn has one row,
or rows of different targets. Rows of later turns are not reversed, since an explorer
may treat them differently, as particle Gibbs does.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from tsi.bench.offspring import NUM_KEYS, Draws
from tsi.bench.robustness import Check
from tsi.bench.source_lines import places_of_functions
from tsi.explore import start, turn
from tsi.explorer import Explorer, Request
from tsi.sampler import Sampler
from tsi.targets.tabular import TabularParticles, TabularTarget

MAX_Z = 5.0
"""Limit for the largest of N scores, and therefore larger than for a single score."""


def permutation_check(
    sampler: Sampler,
    num_particles: int,
    key: Key[Array, ""],
    draws: Draws | None = None,
) -> Check:
    """Whether the weights of offspring do not depend on the positions of particles.

    Tested twice: with all particles unfinished, and with some finished.
    """
    key_told, *keys = jax.random.split(key, 5)
    draws = Draws(sampler, num_particles) if draws is None else draws
    # Not sorted, so that the reverse order is not special.
    log_potentials = np.asarray(1.5 * jax.random.normal(key_told, (num_particles,)))
    ended = np.arange(num_particles) % 3 == 1
    for index, done in enumerate((np.zeros(num_particles, bool), ended)):
        shares = [
            draws(
                keys[2 * index + is_reversed], log_potentials[::step], done[::step]
            ).weights[:, ::step]
            for is_reversed, step in enumerate((1, -1))
        ]
        forward, backward = (share / num_particles for share in shares)
        scores = _scores(forward, backward)
        worst_index = int(np.argmax(scores))
        if scores[worst_index] >= MAX_Z:
            kind = "finished particle" if done[worst_index] else "particle"
            others = ", some of them finished," if done.any() else ""
            detail = (
                f"{kind} {worst_index} has offspring of weight "
                f"{forward.mean(0)[worst_index]:.4g}, and "
                f"{backward.mean(0)[worst_index]:.4g} when all{others} are in "
                f"reverse order (z = {scores[worst_index]:.1f})"
            )
            return Check(
                "permutation", False, detail, places_of_functions(sampler, "ask")
            )
    detail = "offspring follow the particles, not their places"
    return Check("permutation", True, detail)


class _Labelled(TabularTarget):
    """A table whose first symbol is a label that each row gets in the first turn."""

    max_steps = 3

    def __init__(self, order: Int[Array, "W"], is_first_turn: Any) -> None:
        size = order.shape[0]
        numbers = np.random.default_rng(0)
        chances = numbers.dirichlet(np.full(size, 2.0), size)
        scores = numbers.normal(0.0, 1.0, (self.max_steps, size))
        # One label is an end, so that some prefixes are solutions after one step.
        end = 1 if size > 2 else None
        super().__init__(np.full(size, 1.0 / size), chances, scores, end=end)
        self.offsets = jnp.asarray(numbers.normal(0.0, 0.3, size), jnp.float32)
        self.order, self.is_first_turn = order, is_first_turn

    def propose(
        self, key: Any, t: Any, particles: TabularParticles, params: Any = None
    ) -> tuple[TabularParticles, Any]:
        """As in any table, but in the first turn row i gets symbol order[i]."""
        after, corrections = super().propose(key, t, particles, params)
        t = jnp.broadcast_to(t, self.order.shape)
        labelled = self._append_symbol(particles, t, self.order, self.params)
        return jax.tree.map(
            lambda a, b: jnp.where(self.is_first_turn, a, b), labelled, after
        ), corrections

    def log_potential(
        self, t: Any, particles: TabularParticles, params: Any = None
    ) -> Float[Array, "W"]:
        """Scores differ between labels, since ties may be broken by position."""
        scores = super().log_potential(t, particles, params)
        return scores + self.offsets[particles.symbols[:, 0]]


def row_permutation_check(
    explorer: Explorer, num_particles: int, key: Key[Array, ""]
) -> Check:
    """Whether an explorer's choices and result do not depend on the order of rows.

    All rows of the first turn extend the empty prefix. They get labelled prefixes in
    one order and in the reverse order; later steps are drawn as usual.
    """
    reason = _reason_rows_differ(explorer, num_particles, key)
    if reason:
        return Check("permutation", None, f"not applicable: {reason}")
    rows, _, turns = explorer.plan(num_particles, _Labelled.max_steps)
    places = jnp.arange(rows, dtype=jnp.int32)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def shares(key: Key[Array, ""], order: Int[Array, "W"]) -> Float[Array, "2 W"]:
        key_init, key_steps = jax.random.split(key)
        first = start(explorer, _Labelled(order, True), key_init, num_particles)

        def advance(carry: tuple[Any, Array]) -> tuple[Any, Array]:
            before, extensions = carry
            requests: list[Request] = []

            def ask(key: Any, state: Any) -> tuple[Any, Request]:
                state, request = explorer.ask(key, state)
                requests.append(request)
                return state, request

            exploration, _ = turn(
                explorer._replace(ask=ask),
                _Labelled(order, before.turn == 0),
                key_steps,
                before,
            )
            [(parents, _, extend, cuts, _)] = requests
            depths = before.depths[parents]
            depths = depths if cuts is None else jnp.minimum(depths, cuts)
            # A prefix that is cut back to zero steps has no label.
            takes_step = extend & (depths > 0) & (depths < _Labelled.max_steps)
            labels = before.stored.symbols[parents, 0]
            return exploration, extensions + _count(labels, 1.0 * takes_step, rows)

        def is_unfinished(carry: tuple[Any, Array]) -> Array:
            exploration, _ = carry
            return (exploration.turn < turns) & ~exploration.state.done

        exploration, extensions = jax.lax.while_loop(
            is_unfinished, advance, (first, jnp.zeros(rows))
        )
        state = exploration.state
        labels = exploration.stored.symbols[state.members, 0]
        weights = jnp.exp(state.log_weights) / state.members.shape[0]
        return jnp.stack([extensions, _count(labels, weights, rows)])

    def draw_shares(key: Key[Array, ""], order: Int[Array, "W"]) -> np.ndarray:
        return np.asarray(shares(jax.random.split(key, NUM_KEYS), order), np.float64)

    key_forward, key_backward = jax.random.split(key)
    forward = draw_shares(key_forward, places)
    backward = draw_shares(key_backward, places[::-1])
    scores = _scores(forward, backward)
    kind, worst_index = np.unravel_index(int(np.argmax(scores)), scores.shape)
    if scores[kind, worst_index] < MAX_Z:
        detail = "choices and result follow the prefixes, not their rows"
        return Check("permutation", True, detail)
    what, part = (("is extended {} times", "ask"), ("has weight {}", "tell"))[int(kind)]
    forward_mean, backward_mean = (
        f"{x.mean(0)[kind, worst_index]:.4g}" for x in (forward, backward)
    )
    detail = (
        f"the first turn's prefix of row {worst_index} {what.format(forward_mean)}, "
        f"and {backward_mean} when all come in reverse order "
        f"(z = {scores[kind, worst_index]:.1f})"
    )
    return Check("permutation", False, detail, places_of_functions(explorer, part))


def _reason_rows_differ(
    explorer: Explorer, num_particles: int, key: Key[Array, ""]
) -> str:
    """Why the rows of the first turn cannot be exchanged; empty if they can."""
    plan = explorer.plan(num_particles, _Labelled.max_steps)
    if plan.rows == 1:
        return "a turn has one row, so that nothing can be exchanged"
    if explorer.auxiliary:
        return "rows belong to several targets and cannot be exchanged"
    state = explorer.init(key, num_particles, _Labelled.max_steps)
    _, request = explorer.ask(jax.random.fold_in(key, 1), state)
    if not (
        np.asarray(request.extend) & (np.asarray(request.slots) < plan.stored)
    ).all():
        return "the first turn does not extend and keep all rows alike"
    return ""


def _count(labels: Int[Array, "M"], weights: Any, num_labels: int) -> Float[Array, "W"]:
    """The total weight of each label; -1 is an empty prefix and has none."""
    where = jnp.where(labels < 0, num_labels, labels)
    return jnp.zeros(num_labels).at[where].add(weights, mode="drop")


def _scores(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """The difference of the means of two samples [n, ...], in standard errors."""
    variance = (forward.var(0) + backward.var(0)) / len(forward)
    # For shares that vary only by rounding errors.
    return np.abs(forward.mean(0) - backward.mean(0)) / np.sqrt(variance + 1e-12)
