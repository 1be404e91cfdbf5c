"""The order of particles means nothing: told backwards, a sampler decides backwards.

Particles are told in two orders, one the reverse of the other; some have finished, or
none. Over many keys the offspring of each must on average carry the same weight in
both. A reversal maps islands
of neighbours onto islands, so that methods with islands are judged as well, and it is
what systematic resampling does not notice.

Of an explorer, the rows of the first turn are exchanged so, since all of them extend
the empty prefix: in both orders each prefix must be extended as often in all turns that
follow, and have the same weight in the result. It does not apply where a turn has one
row, or rows of different targets. Rows of later turns are not exchanged: an explorer
may have reasons of its own to tell them apart, as particle Gibbs has.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from tsi.bench.offspring import NUM_KEYS, Draws
from tsi.bench.robustness import Check
from tsi.bench.source_lines import blamed
from tsi.explore import start, turn
from tsi.explorer import Explorer, Request
from tsi.sampler import Sampler
from tsi.targets.tabular import TabularParticles, TabularTarget

MAX_Z = 5.0
"""Of the largest of N scores, hence more than for one."""


def permutation_check(
    sampler: Sampler,
    num_particles: int,
    key: Key[Array, ""],
    draws: Draws | None = None,
) -> Check:
    """Whether offspring weights follow the particles and not their places.

    Looked at twice: while all of them go on, and with some that have finished.
    """
    key_told, *keys = jax.random.split(key, 5)
    draws = Draws(sampler, num_particles) if draws is None else draws
    # Not sorted, so that their reverse is another order of the same kind.
    told = np.asarray(1.5 * jax.random.normal(key_told, (num_particles,)))
    ended = np.arange(num_particles) % 3 == 1
    for index, done in enumerate((np.zeros(num_particles, bool), ended)):
        shares = [
            draws(keys[2 * index + back], told[::step], done[::step]).weights[:, ::step]
            for back, step in enumerate((1, -1))
        ]
        forward, backward = (share / num_particles for share in shares)
        scores = _scores(forward, backward)
        worst = int(np.argmax(scores))
        if scores[worst] >= MAX_Z:
            kind = "finished particle" if done[worst] else "particle"
            others = ", some of them finished," if done.any() else ""
            detail = (
                f"{kind} {worst} has offspring of weight "
                f"{forward.mean(0)[worst]:.4g}, and {backward.mean(0)[worst]:.4g} when "
                f"all{others} stand in reverse order (z = {scores[worst]:.1f})"
            )
            return Check("permutation", False, detail, blamed(sampler, "ask"))
    detail = "offspring follow the particles, not their places"
    return Check("permutation", True, detail)


class _Labelled(TabularTarget):
    """A table whose first symbol is a label, dealt to the rows in the first turn."""

    max_steps = 3

    def __init__(self, order: Int[Array, "W"], dealing: Any) -> None:
        size = order.shape[0]
        numbers = np.random.default_rng(0)
        chances = numbers.dirichlet(np.full(size, 2.0), size)
        scores = numbers.normal(0.0, 1.0, (self.max_steps, size))
        # One label is an end, so that some of the prefixes are solutions at once.
        end = 1 if size > 2 else None
        super().__init__(np.full(size, 1.0 / size), chances, scores, end=end)
        self.offsets = jnp.asarray(numbers.normal(0.0, 0.3, size), jnp.float32)
        self.order, self.dealing = order, dealing

    def propose(
        self, key: Any, t: Any, particles: TabularParticles, params: Any = None
    ) -> tuple[TabularParticles, Any]:
        """As of any table, but in the first turn row i gets symbol order[i]."""
        after, corrections = super().propose(key, t, particles, params)
        t = jnp.broadcast_to(t, self.order.shape)
        dealt = self._written(particles, t, self.order, self.params)
        return jax.tree.map(
            lambda a, b: jnp.where(self.dealing, a, b), dealt, after
        ), corrections

    def log_potential(
        self, t: Any, particles: TabularParticles, params: Any = None
    ) -> Float[Array, "W"]:
        """No two labels are ever told the same, so that no tie goes by place."""
        scores = super().log_potential(t, particles, params)
        return scores + self.offsets[particles.symbols[:, 0]]


def row_permutation_check(
    explorer: Explorer, num_particles: int, key: Key[Array, ""]
) -> Check:
    """Whether an explorer's choices and its result follow prefixes and not rows.

    All rows of the first turn extend the empty prefix. They are given prefixes that can
    be told apart, in an order and in the reverse one; what follows is drawn as ever.
    """
    why_not = _why_rows_differ(explorer, num_particles, key)
    if why_not:
        return Check("permutation", None, f"not applicable: {why_not}")
    rows, _, turns = explorer.plan(num_particles, _Labelled.max_steps)
    places = jnp.arange(rows, dtype=jnp.int32)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def shares(key: Key[Array, ""], order: Int[Array, "W"]) -> Float[Array, "2 W"]:
        key_init, key_steps = jax.random.split(key)
        first = start(explorer, _Labelled(order, True), key_init, num_particles)

        def advance(carry: tuple[Any, Array]) -> tuple[Any, Array]:
            before, asked = carry
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
            # A prefix that is cut back to nothing has lost its label.
            took = extend & (depths > 0) & (depths < _Labelled.max_steps)
            labels = before.stored.symbols[parents, 0]
            return exploration, asked + _count(labels, 1.0 * took, rows)

        def goes_on(carry: tuple[Any, Array]) -> Array:
            exploration, _ = carry
            return (exploration.turn < turns) & ~exploration.state.done

        exploration, asked = jax.lax.while_loop(
            goes_on, advance, (first, jnp.zeros(rows))
        )
        state = exploration.state
        labels = exploration.stored.symbols[state.members, 0]
        weights = jnp.exp(state.log_weights) / state.members.shape[0]
        return jnp.stack([asked, _count(labels, weights, rows)])

    def many(key: Key[Array, ""], order: Int[Array, "W"]) -> np.ndarray:
        return np.asarray(shares(jax.random.split(key, NUM_KEYS), order), np.float64)

    key_forward, key_backward = jax.random.split(key)
    forward = many(key_forward, places)
    backward = many(key_backward, places[::-1])
    scores = _scores(forward, backward)
    kind, worst = np.unravel_index(int(np.argmax(scores)), scores.shape)
    if scores[kind, worst] < MAX_Z:
        detail = "choices and result follow the prefixes, not their rows"
        return Check("permutation", True, detail)
    what, part = (("is extended {} times", "ask"), ("has weight {}", "tell"))[int(kind)]
    there, back = (f"{x.mean(0)[kind, worst]:.4g}" for x in (forward, backward))
    detail = (
        f"the first turn's prefix of row {worst} {what.format(there)}, and {back} when "
        f"all come in reverse order (z = {scores[kind, worst]:.1f})"
    )
    return Check("permutation", False, detail, blamed(explorer, part))


def _why_rows_differ(
    explorer: Explorer, num_particles: int, key: Key[Array, ""]
) -> str:
    """Why the rows of the first turn cannot be exchanged; empty if they can."""
    plan = explorer.plan(num_particles, _Labelled.max_steps)
    if plan.rows == 1:
        return "a turn has one row, which has no other to be exchanged with"
    if explorer.auxiliary:
        return "rows belong to several targets, and are no more alike than those"
    state = explorer.init(key, num_particles, _Labelled.max_steps)
    _, request = explorer.ask(jax.random.fold_in(key, 1), state)
    if not (
        np.asarray(request.extend) & (np.asarray(request.slots) < plan.stored)
    ).all():
        return "the first turn does not extend and keep all rows alike"
    return ""


def _count(labels: Int[Array, "M"], weights: Any, num_labels: int) -> Float[Array, "W"]:
    """The weight of each label; -1, an empty prefix, has none."""
    where = jnp.where(labels < 0, num_labels, labels)
    return jnp.zeros(num_labels).at[where].add(weights, mode="drop")


def _scores(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """How many standard errors lie between the means of two samples [n, ...]."""
    variance = (forward.var(0) + backward.var(0)) / len(forward)
    # Shares that do not vary must agree to rounding.
    return np.abs(forward.mean(0) - backward.mean(0)) / np.sqrt(variance + 1e-12)
