"""Monte Carlo tree search over reasoning steps, with a process reward as the value.

A simulation walks down from the root. At each node it moves to the child with the
largest

    Q(child) + c(n) P(child) sqrt(n) / (1 + n(child)),       (PUCT)
    Q(child) + c sqrt(log n / n(child)),                     (UCT)

where n is the number of visits of the node, c(n) = log((n + c_base + 1) / c_base) +
c_init, and Q is the mean value that visits of the child have backed up, or the child's
own reward before its first visit. A node without children is expanded: `width` children
are proposed together. Priors are uniform, 1 / width, because the children are samples
of the policy and their frequencies already follow its probabilities. The value of a
node is its reward, so no random rollout is needed.

Seen as a particle method: with N = width and simulations to the end this is beam search
with one beam, for any c; with N = 1 it is a single rollout; with large c and
simulations of one expansion it fills the tree level by level. In general it is not a
particle system, because it returns to prefixes that it left earlier.

References:
    [1] Kocsis and Szepesvari 2006 (UCT); Silver et al. 2018, AlphaZero (PUCT).
    [2] Wang et al. 2024, OpenR, arXiv 2410.09671, `vanila_mcts` in its code (the
        constants, simulations to the end). Differs: its priors are the policy's,
        normalised over the children, and its budget counts simulations, not steps.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request, undefined_ess
from tsi.picklable import picklable
from tsi.samplers.parts.search_tree import (
    SearchTree,
    back_up,
    children,
    grow,
    new_tree,
    prefer_alive,
    solutions,
)
from tsi.samplers.parts.solutions import count_invalid, empty_solutions
from tsi.step_keys import with_typed_key
from tsi.weights import weight_dtype

Bonus = Callable[[Array, Array, Array], Array]
"""`(visits of the parent [], visits [M], number of siblings []) -> bonus [M]`."""


def puct(c_init: float = 1.25, c_base: float = 19652.0) -> Bonus:
    """AlphaZero's bonus with uniform priors."""
    return functools.partial(_puct, c_init, c_base)


def _puct(
    c_init: float, c_base: float, parent: Array, visits: Array, siblings: Array
) -> Array:
    c = jnp.log((parent + c_base + 1.0) / c_base) + c_init
    return c * jnp.sqrt(parent) / (1.0 + visits) / siblings


def uct(c: float = 2.0**0.5) -> Bonus:
    """UCB1's bonus; children without a visit come first, in order of their rewards."""
    return functools.partial(_uct, c)


def _uct(c: float, parent: Array, visits: Array, siblings: Array) -> Array:
    spread = jnp.log(jnp.maximum(parent, 1.0)) / jnp.maximum(visits, 1)
    return jnp.where(visits > 0, c * jnp.sqrt(spread), jnp.inf)


class MCTSState(NamedTuple):
    """A tree and the node that the current simulation has reached.

    Attributes:
        done: whether steps or turns are spent, N solutions are finished, or every leaf
            is finished.
        members, log_weights, log_potentials, finished: the result, [N].
        log_evidence: 0; the method has no target.
        tree: all prefixes proposed so far.
        node: current node of the simulation.
        parents, slots: of the current turn, [W].
        expansions_left: how many more nodes may be expanded.
        turns_left: remaining turns of the plan.
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

    There are at most N T / width expansions, hence N T steps. The run ends as soon as N
    solutions are finished or no node is left to expand. A simulation that reaches a
    finished node backs up its value again. This costs no step, and a run has at most
    twice as many turns as expansions.

    Args:
        width: children per expansion; values above N mean N.
        bonus: the exploration bonus, by default puct().
        to_end: whether a simulation continues from each expanded node to its best child
            until it reaches a finished node, and backs up that node's reward. If not,
            it ends with its first expansion and backs up the reward of the expanded
            node; the budget may then be spent before any solution is finished.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: for a width below one.
    """
    if width < 1:
        raise ConfigurationError(f"mcts needs a width of at least one; got {width}.")
    bonus = puct() if bonus is None else bonus

    def count_expansions(num_particles: int, max_steps: int) -> int:
        return num_particles * max_steps // min(width, num_particles)

    def plan(num_particles: int, max_steps: int) -> Plan:
        rows = min(width, num_particles)
        max_expansions = count_expansions(num_particles, max_steps)
        return Plan(rows, 1 + rows * max_expansions, 2 * max_expansions)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> MCTSState:
        rows, num_stored, turns = plan(num_particles, max_steps)
        zero = jnp.zeros((), jnp.int32)
        return MCTSState(
            done=jnp.zeros((), bool),
            **empty_solutions(num_particles)._asdict(),
            log_evidence=jnp.zeros((), weight_dtype()),
            tree=new_tree(num_stored),
            node=zero,
            parents=jnp.zeros(rows, jnp.int32),
            slots=jnp.zeros(rows, jnp.int32),
            expansions_left=zero + count_expansions(num_particles, max_steps),
            turns_left=zero + turns,
        )

    def best_child(tree: SearchTree, node: Int[Array, ""]) -> Int[Array, ""]:
        is_child = children(tree, node)
        bonuses = bonus(tree.visits[node], tree.visits, jnp.sum(is_child))
        values = tree.values
        unvisited = is_child & jnp.isinf(bonuses)
        score = jnp.where(unvisited, values, values + bonuses)
        # An infinite bonus beats every finite one; rewards decide between infinite
        # ones.
        candidates = prefer_alive(tree, is_child)
        unvisited_candidates = candidates & unvisited
        candidates = jnp.where(
            jnp.any(unvisited_candidates), unvisited_candidates, candidates
        )
        return jnp.argmax(jnp.where(candidates, score, -jnp.inf)).astype(jnp.int32)

    @with_typed_key
    def ask(key: Key[Array, ""], state: MCTSState) -> tuple[MCTSState, Request]:
        tree = state.tree
        node = jax.lax.while_loop(
            lambda node: jnp.any(children(tree, node)),
            lambda node: best_child(tree, node),
            state.node,
        )
        rows, num_stored = state.parents.shape[0], tree.parent.shape[0]
        extend = jnp.full(rows, ~tree.finished[node])
        free_slots = tree.size + jnp.arange(rows, dtype=jnp.int32)
        slots = jnp.where(extend, free_slots, num_stored)
        parents = jnp.full(rows, node)
        state = state._replace(node=node, parents=parents, slots=slots)
        return state, Request(parents, slots, extend)

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: MCTSState, reply: Reply
    ) -> tuple[MCTSState, ExplorerInfo]:
        node = state.node
        expanded = ~state.tree.finished[node]
        step_mask = jnp.full(state.parents.shape, expanded)
        tree = grow(state.tree, state.parents, state.slots, step_mask, reply)
        # An expansion of the root is not a visit, since the root has no reward.
        ends = ~expanded if to_end else node > 0
        tree = back_up(tree, node, tree.rewards[node], ends)
        size = state.members.shape[0]
        expansions_left = state.expansions_left - expanded
        turns_left = state.turns_left - 1
        budget_is_spent = (expansions_left <= 0) | (turns_left <= 0)
        done = (tree.num_finished >= size) | budget_is_spent | tree.is_exhausted
        state = state._replace(
            **solutions(tree, size)._asdict(),
            done=done,
            tree=tree,
            node=jnp.where(expanded & to_end, node, 0),
            expansions_left=expansions_left,
            turns_left=turns_left,
        )
        info = ExplorerInfo(
            parents=state.parents,
            slots=state.slots,
            ess=undefined_ess(),
            num_recoveries=jnp.zeros((), jnp.int32),
            num_invalid=count_invalid(reply, step_mask),
        )
        return state, info

    return Explorer(plan, init, ask, tell, None, select)
