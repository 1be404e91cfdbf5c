"""Adaptive branching: Thompson sampling decides whether to go wider or deeper.

At each node from the root down two mean rewards are drawn from their posteriors: GEN's,
told the rewards of the node's children, and CONT's, told those of all that came of its
children. If GEN's is larger, the node gets a new child; else one draw for each child,
from the posterior told the rewards of its whole subtree and its own, says where to
descend. At a node without children only GEN is left, so that a new child is extended
until it has finished. Every new child's reward is told to its ancestors.

In the language of particles: where GEN always wins each walk is a rollout from the
root, and N of them side by side are best-of-N, particle for particle. In general it is
no particle system: it returns to prefixes that it had left behind.

AB-MCTS-M, the paper's other variant, fits a hierarchical mixed model by MCMC before
every decision; its posterior has no fixed-size statistics, and a chain inside each turn
would cost more than the turn's steps. It is left out.

References:
    [1] Inoue et al. 2025, arXiv 2503.04412 (AB-MCTS-A), code SakanaAI/treequest.
        Differs: there a node is a whole answer and a child a refinement of it, here a
        node is a prefix and a child one more step. So a walk goes on from its new child
        (`to_end`), or most walks would end before any solution does; a finished child
        cannot be continued and is no choice, and neither is one of reward zero while a
        sibling has any. Rewards of either count for GEN and CONT as all others do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request, no_size
from tsi.picklable import picklable
from tsi.samplers.parts.search_tree import (
    SearchTree,
    children,
    grow,
    new_tree,
    preferable,
    solutions,
)
from tsi.samplers.parts.solutions import no_solutions, not_numbers
from tsi.samplers.parts.thompson import (
    Observations,
    Posterior,
    no_observations,
    observe,
    posterior_named,
)
from tsi.step_keys import with_typed_key
from tsi.weights import weight_dtype


class Evidence(NamedTuple):
    """The rewards that each node's decisions rest on, [M].

    Attributes:
        generated: of its children.
        continued: of what came of its children.
        subtree: its own and of all below it.
    """

    generated: Observations
    continued: Observations
    subtree: Observations


class ABMCTSState(NamedTuple):
    """A tree and what was seen in it.

    Attributes:
        done: whether the budget is spent or N solutions are finished.
        members, log_weights, log_potentials, finished: the result, [N].
        log_evidence: 0; nothing is targeted.
        tree: what has been proposed so far; its visits and totals are not used.
        evidence: what Thompson sampling rests on.
        nodes: where each walk stands; 0 where it is to begin, [W].
        parents, slots: of the turn under way, [W].
        turns_left: how many more turns there may be.
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


def draws(key: Key[Array, ""], posterior: Posterior, evidence: Evidence) -> Array:
    """One draw for each posterior of each node: GEN, CONT and the node, [3, M].

    A node is drawn once for a walk, which comes by it at most once.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *evidence)
    return posterior(key, stacked)


def told_ancestors(
    tree: SearchTree,
    evidence: Evidence,
    slots: Int[Array, "W"],
    rewards: Float[Array, "W"],
) -> Evidence:
    """Evidence with the rewards of new children at `slots`, told all the way up."""
    generated, continued, subtree = evidence
    every = jnp.ones(slots.shape, bool)
    parents = tree.parent[slots]
    generated = observe(generated, parents, rewards, every)
    subtree = observe(subtree, slots, rewards, every)

    def up(carry: tuple) -> tuple:
        nodes, continued, subtree = carry
        above = tree.parent[nodes]
        inside = above >= 0
        continued = observe(continued, above, rewards, inside)
        subtree = observe(subtree, nodes, rewards, inside)
        return jnp.where(inside, above, 0), continued, subtree

    _, continued, subtree = jax.lax.while_loop(
        lambda carry: jnp.any(carry[0] > 0), up, (parents, continued, subtree)
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
    """AB-MCTS-A at the cost of N rollouts: N T new children at most.

    The run ends as soon as N solutions are finished.

    Args:
        posterior: "gaussian", "beta", or a function as in
            `tsi.samplers.parts.thompson`.
        batch: walks side by side, whose draws do not know of each other; beyond N it
            means N. One is the published method, more use a device better.
        to_end: whether a walk goes on from its new child. If not, a budget may end
            before any solution does.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: for a batch below one.
        UnknownNameError: for a posterior that is not known.
    """
    if batch < 1:
        raise ConfigurationError(
            f"ab_mcts needs a batch of at least one, and it is {batch}."
        )
    draw = posterior_named(posterior)

    def plan(num_particles: int, max_steps: int) -> Plan:
        rows = min(batch, num_particles)
        turns = num_particles * max_steps // rows
        return Plan(rows, 1 + rows * turns, turns)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> ABMCTSState:
        rows, stored, turns = plan(num_particles, max_steps)
        nothing = no_observations((stored,))
        return ABMCTSState(
            done=jnp.zeros((), bool),
            **no_solutions(num_particles)._asdict(),
            log_evidence=jnp.zeros((), weight_dtype()),
            tree=new_tree(stored),
            evidence=Evidence(nothing, nothing, nothing),
            nodes=jnp.zeros(rows, jnp.int32),
            parents=jnp.zeros(rows, jnp.int32),
            slots=jnp.zeros(rows, jnp.int32),
            turns_left=jnp.asarray(turns, jnp.int32),
        )

    def walk(
        key: Key[Array, ""], tree: SearchTree, evidence: Evidence
    ) -> Int[Array, ""]:
        """The node that gets a new child."""
        generate, go_on, node_draws = draws(key, draw, evidence)

        def choices(node: Int[Array, ""]) -> Bool[Array, "M"]:
            return preferable(tree, children(tree, node) & ~tree.finished)

        def deeper(node: Int[Array, ""]) -> Bool[Array, ""]:
            return jnp.any(choices(node)) & (go_on[node] > generate[node])

        def descend(node: Int[Array, ""]) -> Int[Array, ""]:
            scores = jnp.where(choices(node), node_draws, -jnp.inf)
            return jnp.argmax(scores).astype(jnp.int32)

        return jax.lax.while_loop(deeper, descend, jnp.zeros((), jnp.int32))

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
        took = jnp.ones(state.parents.shape, bool)
        tree = grow(state.tree, state.parents, state.slots, took, reply)
        rewards = tree.rewards[state.slots]
        size, left = state.members.shape[0], state.turns_left - 1
        going_on = ~tree.finished[state.slots] & to_end
        state = state._replace(
            **solutions(tree, size)._asdict(),
            done=(tree.num_finished >= size) | (left <= 0),
            tree=tree,
            evidence=told_ancestors(tree, state.evidence, state.slots, rewards),
            nodes=jnp.where(going_on, state.slots, 0),
            turns_left=left,
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
