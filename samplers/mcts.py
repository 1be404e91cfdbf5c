"""Monte Carlo tree search over reasoning steps, judged by a process reward.

A simulation walks down from the root, at each node to the child of the largest

    Q(child) + c(n) P(child) sqrt(n) / (1 + n(child)),       (PUCT)
    Q(child) + c sqrt(log n / n(child)),                     (UCT)

with n the node's visits, c(n) = log((n + c_base + 1) / c_base) + c_init, and Q the mean
of what visits of the child found, before the first the child's own reward. At a node
without children it proposes `width` of them at once. Priors are uniform, 1 / width: the
children are samples of the policy, whose probabilities are spent in drawing them. The
value of a node is its reward, so no random rollout is needed.

In the language of particles: with N = width and simulations to the end it is beam
search with one beam, whatever c is; with N = 1 a single rollout; with large c and
simulations of one expansion it fills the tree level by level. In general it is no
particle system: it returns to prefixes that it had left behind.

References:
    [1] Kocsis and Szepesvari 2006 (UCT); Silver et al. 2018, AlphaZero (PUCT).
    [2] Wang et al. 2024, OpenR, arXiv 2410.09671, `vanila_mcts` in its code (the
        constants, simulations to the end). Differs: its priors are the policy's,
        normalised over the children, and it counts simulations where the budget here
        counts steps.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request, no_size
from tsi.picklable import picklable
from tsi.samplers.parts.search_tree import (
    SearchTree,
    backed_up,
    children,
    grow,
    new_tree,
    preferable,
    solutions,
)
from tsi.samplers.parts.solutions import no_solutions, not_numbers
from tsi.step_keys import with_typed_key
from tsi.weights import weight_dtype

Bonus = Callable[[Array, Array, Array], Array]
"""`(parent's visits [], visits [M], number of siblings []) -> bonus [M]`."""


def puct(c_init: float = 1.25, c_base: float = 19652.0) -> Bonus:
    """AlphaZero's bonus with uniform priors."""
    return functools.partial(_puct, c_init, c_base)


def _puct(
    c_init: float, c_base: float, parent: Array, visits: Array, siblings: Array
) -> Array:
    c = jnp.log((parent + c_base + 1.0) / c_base) + c_init
    return c * jnp.sqrt(parent) / (1.0 + visits) / siblings


def uct(c: float = 2.0**0.5) -> Bonus:
    """UCB1's bonus; children without a visit come first, the best reward before all."""
    return functools.partial(_uct, c)


def _uct(c: float, parent: Array, visits: Array, siblings: Array) -> Array:
    spread = jnp.log(jnp.maximum(parent, 1.0)) / jnp.maximum(visits, 1)
    return jnp.where(visits > 0, c * jnp.sqrt(spread), jnp.inf)


class MCTSState(NamedTuple):
    """A tree and where the present simulation stands in it.

    Attributes:
        done: whether steps or turns are spent, N solutions are finished or all leaves
            are.
        members, log_weights, log_potentials, finished: the result, [N].
        log_evidence: 0; nothing is targeted.
        tree: what has been proposed so far.
        node: where the simulation stands.
        parents, slots: of the turn under way, [W].
        expansions_left: how many more nodes may be given children.
        turns_left: of the plan.
    """

    done: Bool[Array, ""]
    members: Int[Array, "N"]
    log_weights: Float[Array, "N"]
    log_potentials: Float[Array, "N"]
    finished: Bool[Array, "N"]
    log_evidence: Float[Array, ""]
    tree: SearchTree
    node: Int[Array, ""]
    parents: Int[Array, "W"]
    slots: Int[Array, "W"]
    expansions_left: Int[Array, ""]
    turns_left: Int[Array, ""]


@picklable
def mcts(
    width: int = 4,
    *,
    bonus: Bonus | None = None,
    to_end: bool = True,
    select: str = "argmax",
) -> Explorer:
    """Monte Carlo tree search at the cost of N rollouts.

    There are at most N T / width expansions, hence N T steps, and the run ends as soon
    as N solutions are finished or nothing is left to expand. A simulation that arrives
    at a finished node backs its value up again. That costs no step, and a run has at
    most twice as many turns as expansions.

    Args:
        width: children of an expansion; if N is smaller, N.
        bonus: what exploration is worth, puct() by default.
        to_end: a simulation goes on, from each expanded node to its best child, until
            it has finished, and backs up the finished node's reward. Otherwise it ends
            with its first expansion, and backs up the expanded node's reward; a budget
            may then end before any solution does.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: for a width below one.
    """
    if width < 1:
        raise ConfigurationError(
            f"mcts needs a width of at least one, and it is {width}."
        )
    bonus = puct() if bonus is None else bonus

    def expansions(num_particles: int, max_steps: int) -> int:
        return num_particles * max_steps // min(width, num_particles)

    def plan(num_particles: int, max_steps: int) -> Plan:
        rows = min(width, num_particles)
        most = expansions(num_particles, max_steps)
        return Plan(rows, 1 + rows * most, 2 * most)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> MCTSState:
        rows, stored, turns = plan(num_particles, max_steps)
        zero = jnp.zeros((), jnp.int32)
        return MCTSState(
            done=jnp.zeros((), bool),
            **no_solutions(num_particles)._asdict(),
            log_evidence=jnp.zeros((), weight_dtype()),
            tree=new_tree(stored),
            node=zero,
            parents=jnp.zeros(rows, jnp.int32),
            slots=jnp.zeros(rows, jnp.int32),
            expansions_left=zero + expansions(num_particles, max_steps),
            turns_left=zero + turns,
        )

    def best_child(tree: SearchTree, node: Int[Array, ""]) -> Int[Array, ""]:
        family = children(tree, node)
        extra = bonus(tree.visits[node], tree.visits, jnp.sum(family))
        values = tree.values
        unvisited = family & jnp.isinf(extra)
        score = jnp.where(unvisited, values, values + extra)
        # An infinite bonus beats every finite one; among its like the reward decides.
        candidates = preferable(tree, family)
        first = candidates & unvisited
        candidates = jnp.where(jnp.any(first), first, candidates)
        return jnp.argmax(jnp.where(candidates, score, -jnp.inf)).astype(jnp.int32)

    @with_typed_key
    def ask(key: Key[Array, ""], state: MCTSState) -> tuple[MCTSState, Request]:
        tree = state.tree
        node = jax.lax.while_loop(
            lambda node: jnp.any(children(tree, node)),
            lambda node: best_child(tree, node),
            state.node,
        )
        rows, stored = state.parents.shape[0], tree.parent.shape[0]
        extend = jnp.full(rows, ~tree.finished[node])
        free = tree.size + jnp.arange(rows, dtype=jnp.int32)
        slots = jnp.where(extend, free, stored)
        parents = jnp.full(rows, node)
        state = state._replace(node=node, parents=parents, slots=slots)
        return state, Request(parents, slots, extend)

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: MCTSState, reply: Reply
    ) -> tuple[MCTSState, ExplorerInfo]:
        node = state.node
        expanded = ~state.tree.finished[node]
        took = jnp.full(state.parents.shape, expanded)
        tree = grow(state.tree, state.parents, state.slots, took, reply)
        # To expand the root is no visit: it has no reward that one could find.
        ends = ~expanded if to_end else node > 0
        tree = backed_up(tree, node, tree.rewards[node], ends)
        size = state.members.shape[0]
        left = state.expansions_left - expanded
        turns_left = state.turns_left - 1
        spent = (left <= 0) | (turns_left <= 0)
        enough = (tree.num_finished >= size) | spent | tree.exhausted
        state = state._replace(
            **solutions(tree, size)._asdict(),
            done=enough,
            tree=tree,
            node=jnp.where(expanded & to_end, node, 0),
            expansions_left=left,
            turns_left=turns_left,
        )
        info = ExplorerInfo(
            parents=state.parents,
            slots=state.slots,
            ess=no_size(),
            num_recoveries=jnp.zeros((), jnp.int32),
            num_invalid=not_numbers(reply, took),
        )
        return state, info

    return Explorer(plan, init, ask, tell, None, select)
