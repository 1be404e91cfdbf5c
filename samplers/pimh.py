r"""Particle independent Metropolis-Hastings: whole particle systems as proposals.

Each iteration runs a fresh SMC with n particles and evidence estimate Z', and accepts
it in place of the present one with probability min(1, Z' / Z). The system's law times
its estimate is the invariant measure, of which the weighted particles are a marginal's
unbiased estimate; the first system is properly weighted by its own Z0, and so

    E[ Z0 (1/J) sum_j sum_i W_j^i phi(x_j^i) ] = sum_x p(x) exp(s(x)) phi(x)

after any number J of iterations, j running over the systems accepted at each.

References:
    [1] Andrieu, Doucet and Holenstein 2010, Particle Markov chain Monte Carlo methods,
        section 4.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.picklable import picklable
from tsi.samplers import conditional_smc as csmc
from tsi.samplers.parts.path_record import ChainSample, PathRecord, no_paths, summary
from tsi.samplers.parts.potentials import Potential, product
from tsi.samplers.parts.sweep_budget import SWEEP, path_score, shared_budget
from tsi.step_keys import with_typed_key
from tsi.weights import CompensatedSum


class PIMHState(NamedTuple):
    """The system accepted last, and the one in the making.

    Attributes:
        done: whether the budget is spent.
        members: stored particles that are the result, [K]; those of a system come
            again where the next was rejected.
        log_weights, log_potentials, finished: of the members, [K].
        log_evidence: of the first system.
        iteration: systems completed.
        sample: numbers of one particle of the accepted system, the chain's state.
        place: where that particle is stored.
        sweep: the system in the making.
        log_accepted: log evidence of the accepted system, with its rest.
        bank: which of two banks of slots holds it, in an endless chain.
        accepted: proposals accepted so far, the first system not counted.
        parents: as last requested, [n].
    """

    done: Bool[Array, ""]
    members: Int[Array, "K"]
    log_weights: Float[Array, "K"]
    log_potentials: Float[Array, "K"]
    finished: Bool[Array, "K"]
    log_evidence: Float[Array, ""]
    iteration: Int[Array, ""]
    sample: ChainSample
    place: Int[Array, ""]
    sweep: csmc.Sweep
    log_accepted: CompensatedSum
    bank: Int[Array, ""]
    accepted: Int[Array, ""]
    parents: Int[Array, "n"]


@picklable
def pimh(
    weights: str = "odds",
    *,
    potential: Potential | None = None,
    num_iterations: int | None = None,
    particles_per_iteration: int | None = None,
    endless: bool = False,
    select: str = "posterior",
) -> Explorer:
    """Particle independent Metropolis-Hastings.

    N rollouts are J systems of n = N / J particles, and the result has N particles:
    those of the accepted system after each iteration.

    Args:
        weights: transform of the product potential, if no potential is given.
        potential: product, telescoping or uniform.
        num_iterations: J, by default 4; at least 2, for one is SMC.
        particles_per_iteration: n, in place of J.
        endless: never done; each system has all N particles, and between iterations the
            members are those of the accepted one. Needs a target with `truncate`.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: for a potential without weights of prefixes, or both
            num_iterations and particles_per_iteration.
    """
    potential = product(weights) if potential is None else potential
    score = path_score(potential, "pimh")
    if num_iterations is not None and particles_per_iteration is not None:
        raise ConfigurationError(
            "pimh takes num_iterations or particles_per_iteration: the budget N is "
            "their product, so one gives the other."
        )
    never = jnp.zeros((), bool)

    def budget(num_particles: int) -> tuple[int, int]:
        if endless:
            return 1, num_particles
        return shared_budget(num_particles, num_iterations, particles_per_iteration, 1)

    def plan(num_particles: int, max_steps: int) -> Plan:
        iterations, size = budget(num_particles)
        stored = 2 * num_particles if endless else num_particles
        return Plan(size, stored, iterations * max_steps)

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> PIMHState:
        _, size = budget(num_particles)
        zero = jnp.zeros((), jnp.int32)
        return PIMHState(
            done=jnp.zeros((), bool),
            members=jnp.arange(num_particles, dtype=jnp.int32),
            log_weights=jnp.zeros(num_particles),
            log_potentials=jnp.zeros(num_particles),
            finished=jnp.zeros(num_particles, bool),
            log_evidence=jnp.zeros(()),
            iteration=zero,
            sample=summary(no_paths((), max_steps), score),
            place=zero,
            sweep=csmc.begin(size, max_steps),
            log_accepted=CompensatedSum(jnp.full((), -jnp.inf), jnp.zeros(())),
            bank=zero,
            accepted=zero,
            parents=jnp.arange(size, dtype=jnp.int32),
        )

    def home(state: PIMHState) -> Int[Array, "n"]:
        """Where the system in the making is stored."""
        size = state.parents.shape[0]
        bank = 1 - state.bank if endless else state.iteration
        return bank * size + jnp.arange(size, dtype=jnp.int32)

    @with_typed_key
    def ask(key: Key[Array, ""], state: PIMHState) -> tuple[PIMHState, Request]:
        t = state.sweep.smc.t
        sweep = csmc.fork(key, state.sweep, potential, never)
        own = home(state)
        parents = own[sweep.smc.ancestors]
        request = Request(
            parents=parents,
            slots=own,
            extend=~sweep.smc.finished,
            depths=jnp.broadcast_to(t, own.shape) if endless else None,
        )
        return state._replace(sweep=sweep, parents=parents), request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: PIMHState, reply: Reply
    ) -> tuple[PIMHState, ExplorerInfo]:
        nobody = no_paths((), state.sweep.records.log_potentials.shape[-1])
        sweep, info = csmc.weigh(state.sweep, reply, potential, never, nobody)
        told = _accept_system(key, state._replace(sweep=sweep))
        return told, ExplorerInfo(
            state.parents,
            home(state),
            info.ess,
            info.num_recoveries,
            info.num_invalid,
        )

    def _accept_system(key: Key[Array, ""], state: PIMHState) -> PIMHState:
        """If the system is complete, accept it or keep the one before."""
        key_accept, key_draw = jax.random.split(key)
        smc, own = state.sweep.smc, home(state)
        size, kept = own.shape[0], state.members.shape[0]
        over = jnp.all(smc.finished)
        first = state.iteration == 0
        # From a system without evidence every move is accepted, as -inf - -inf is NaN.
        dead = state.log_accepted.value == -jnp.inf
        evidence = smc.evidence_sum
        log_ratio = jnp.where(dead, jnp.inf, evidence.minus(state.log_accepted))
        accept = jnp.log(jax.random.uniform(key_accept)) < log_ratio

        # The members of the last iteration, where there was one.
        before = jnp.maximum(0 if endless else state.iteration - 1, 0) * size
        now = jnp.arange(size) + (0 if endless else state.iteration * size)

        def stored(old: Array, new: Array) -> Array:
            held = jax.lax.dynamic_slice(old, (before,), (size,))
            return old.at[now].set(jnp.where(accept, new, held))

        chosen = csmc.draw(key_draw, smc.log_weights)
        drawn: PathRecord = jax.tree.map(lambda leaf: leaf[chosen], state.sweep.records)
        sample = summary(drawn, score)
        over_now = state._replace(
            done=jnp.asarray(not endless) & ((state.iteration + 1) * size >= kept),
            members=stored(state.members, own),
            log_weights=stored(state.log_weights, smc.log_weights),
            log_potentials=stored(state.log_potentials, smc.log_potentials),
            finished=stored(state.finished, smc.finished),
            log_evidence=jnp.where(first, smc.log_evidence, state.log_evidence),
            iteration=state.iteration + 1,
            sample=jax.tree.map(
                lambda new, old: jnp.where(accept, new, old), sample, state.sample
            ),
            place=jnp.where(accept, own[chosen], state.place),
            sweep=csmc.begin(size, state.sweep.records.log_potentials.shape[-1]),
            log_accepted=jax.tree.map(
                lambda new, old: jnp.where(accept, new, old),
                evidence,
                state.log_accepted,
            ),
            bank=jnp.where(accept, 1 - state.bank, state.bank),
            accepted=state.accepted + (accept & ~first),
        )
        return jax.tree.map(lambda a, b: jnp.where(over, a, b), over_now, state)

    needs = ("truncate",) if endless else ()
    return Explorer(
        plan,
        init,
        ask,
        tell,
        score,
        select,
        needs=needs,
        endless=endless,
        chain=True,
        acceptance=lambda state: state.accepted / (state.iteration - 1),
        default_particles=SWEEP,
    )
