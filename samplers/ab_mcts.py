"""Adaptive branching: Thompson sampling decides whether to go wider or deeper.

A walk starts at the root. At each node it compares two actions: generate a new child
(GEN) or continue at a child (CONT). It draws the mean reward of each from a posterior,
for GEN given the rewards of the node's children, and for CONT given the rewards of all
nodes below its children. If GEN's draw is larger, the node gets a new child. Otherwise
the walk descends: it draws one mean reward per child, given the child's own reward and
those of its subtree, and moves to the child with the largest draw. At a node without
children GEN is the only choice, so a new child is extended until it has finished. The
reward of every new child is recorded at all its ancestors.

Seen as a particle method: if GEN always wins, each walk is a rollout from the root, and
N parallel walks are best-of-N, particle for particle. In general it is not a particle
system, because it returns to prefixes that it left earlier.

AB-MCTS-M, the other variant of the paper, is not implemented. It fits a hierarchical
mixed model by MCMC before every decision. Its posterior has no sufficient statistics of
fixed size, and a chain inside each turn would cost more than the steps of the turn.

References:
    [1] Inoue et al. 2025, arXiv 2503.04412 (AB-MCTS-A), code SakanaAI/treequest.
        Differs: in the paper a node is a whole answer and a child is a refinement of
        it; here a node is a prefix and a child adds one step. A walk therefore
        continues from its new child (`to_end`), since otherwise most walks would end
        before any solution does. A finished child cannot be continued and cannot be
        chosen, nor can a child of reward zero while a sibling has a positive reward.
        The rewards of such children still count for GEN and CONT.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request, undefined_ess
from tsi.picklable import picklable
from tsi.samplers.parts.search_tree import (
    SearchTree,
    children,
    grow,
    new_tree,
    prefer_alive,
    solutions,
)
from tsi.samplers.parts.solutions import count_invalid, empty_solutions
from tsi.samplers.parts.thompson import (
    Observations,
    Posterior,
    empty_observations,
    get_posterior,
    observe,
)
from tsi.step_keys import with_typed_key
from tsi.weights import weight_dtype


class Evidence(NamedTuple):
    """The rewards on which the decisions at each node are based, [M].

    Attributes:
        generated: rewards of its children.
        continued: rewards of the nodes below its children.
        subtree: its own reward and those of all nodes below it.
    """

    generated: Observations
    continued: Observations
    subtree: Observations


class ABMCTSState(NamedTuple):
    """A tree and the rewards observed in it.

    Attributes:
        done: whether the budget is spent or N solutions are finished.
        members, log_weights, log_potentials, finished: the result, [N].
        log_evidence: 0; the method has no target.
        tree: all prefixes proposed so far; its visits and totals are not used.
        evidence: the rewards on which Thompson sampling is based.
        nodes: current node of each walk, [W]; 0 if the walk starts in the next turn.
        parents, slots: of the current turn, [W].
        turns_left: the maximum number of turns that may follow.
    """

    done: Bool[Array, ""]
    members: Int[Array, "N"]
    log_weights: Float[Array, "N"]
    log_potentials: Float[Array, "N"]
    finished: Bool[Array, "N"]
    log_evidence: Float[Array, ""]
    tree: SearchTree
    evidence: Evidence
    nodes: Int[Array, "W"]
    parents: Int[Array, "W"]
    slots: Int[Array, "W"]
    turns_left: Int[Array, ""]


def draw_means(key: Key[Array, ""], posterior: Posterior, evidence: Evidence) -> Array:
    """One mean reward per node from each posterior: GEN, CONT and the node's, [3, M].

    One draw per node is enough, since a walk visits a node at most once.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *evidence)
    return posterior(key, stacked)


def record_rewards(
    tree: SearchTree,
    evidence: Evidence,
    slots: Int[Array, "W"],
    rewards: Float[Array, "W"],
) -> Evidence:
    """Record the rewards of new children at `slots` and at all their ancestors."""
    generated, continued, subtree = evidence
    all_rows = jnp.ones(slots.shape, bool)
    parents = tree.parent[slots]
    generated = observe(generated, parents, rewards, all_rows)
    subtree = observe(subtree, slots, rewards, all_rows)

    def climb(carry: tuple) -> tuple:
        nodes, continued, subtree = carry
        parent = tree.parent[nodes]
        has_parent = parent >= 0
        continued = observe(continued, parent, rewards, has_parent)
        subtree = observe(subtree, nodes, rewards, has_parent)
        return jnp.where(has_parent, parent, 0), continued, subtree

    _, continued, subtree = jax.lax.while_loop(
        lambda carry: jnp.any(carry[0] > 0), climb, (parents, continued, subtree)
    )
    return Evidence(generated, continued, subtree)


@picklable
def ab_mcts(
    posterior: str | Posterior = "gaussian",
    *,
    batch: int = 1,
    to_end: bool = True,
    select: str = "argmax",
) -> Explorer:
    """AB-MCTS-A at the cost of N rollouts: at most N T new children.

    The run ends as soon as N solutions are finished.

    Args:
        posterior: "gaussian", "beta", or a function as in
            `tsi.samplers.parts.thompson`.
        batch: number of parallel walks; values above N mean N. Walks of one turn do not
            see each other's rewards. 1 is the published method; more walks use a device
            better.
        to_end: whether a walk continues from its new child. If not, the budget may be
            spent before any solution is finished.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: for a batch below one.
        UnknownNameError: for an unknown posterior.
    """
    if batch < 1:
        raise ConfigurationError(
            f"ab_mcts needs a batch of at least one, and it is {batch}."
        )
    draw = get_posterior(posterior)

    def plan(num_particles: int, max_steps: int) -> Plan:
        rows = min(batch, num_particles)
        turns = num_particles * max_steps // rows
        return Plan(rows, 1 + rows * turns, turns)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> ABMCTSState:
        rows, num_stored, turns = plan(num_particles, max_steps)
        empty = empty_observations((num_stored,))
        return ABMCTSState(
            done=jnp.zeros((), bool),
            **empty_solutions(num_particles)._asdict(),
            log_evidence=jnp.zeros((), weight_dtype()),
            tree=new_tree(num_stored),
            evidence=Evidence(empty, empty, empty),
            nodes=jnp.zeros(rows, jnp.int32),
            parents=jnp.zeros(rows, jnp.int32),
            slots=jnp.zeros(rows, jnp.int32),
            turns_left=jnp.asarray(turns, jnp.int32),
        )

    def walk(
        key: Key[Array, ""], tree: SearchTree, evidence: Evidence
    ) -> Int[Array, ""]:
        """The node that gets a new child."""
        generate_means, continue_means, node_means = draw_means(key, draw, evidence)

        def find_choices(node: Int[Array, ""]) -> Bool[Array, "M"]:
            return prefer_alive(tree, children(tree, node) & ~tree.finished)

        def goes_deeper(node: Int[Array, ""]) -> Bool[Array, ""]:
            return jnp.any(find_choices(node)) & (
                continue_means[node] > generate_means[node]
            )

        def descend(node: Int[Array, ""]) -> Int[Array, ""]:
            scores = jnp.where(find_choices(node), node_means, -jnp.inf)
            return jnp.argmax(scores).astype(jnp.int32)

        return jax.lax.while_loop(goes_deeper, descend, jnp.zeros((), jnp.int32))

    @with_typed_key
    def ask(key: Key[Array, ""], state: ABMCTSState) -> tuple[ABMCTSState, Request]:
        rows = state.parents.shape[0]
        keys = jax.random.split(key, rows)
        parents = jax.vmap(walk, in_axes=(0, None, None))(
            keys, state.tree, state.evidence
        )
        parents = jnp.where(state.nodes > 0, state.nodes, parents)
        slots = state.tree.size + jnp.arange(rows, dtype=jnp.int32)
        state = state._replace(parents=parents, slots=slots)
        return state, Request(parents, slots, jnp.ones(rows, bool))

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: ABMCTSState, reply: Reply
    ) -> tuple[ABMCTSState, ExplorerInfo]:
        step_mask = jnp.ones(state.parents.shape, bool)
        tree = grow(state.tree, state.parents, state.slots, step_mask, reply)
        rewards = tree.rewards[state.slots]
        size, turns_left = state.members.shape[0], state.turns_left - 1
        continues = ~tree.finished[state.slots] & to_end
        state = state._replace(
            **solutions(tree, size)._asdict(),
            done=(tree.num_finished >= size) | (turns_left <= 0),
            tree=tree,
            evidence=record_rewards(tree, state.evidence, state.slots, rewards),
            nodes=jnp.where(continues, state.slots, 0),
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
