r"""Particle independent Metropolis-Hastings: particle systems as proposals.

Each iteration runs SMC with n new particles and evidence estimate Z'. The new system
replaces the current one with probability min(1, Z' / Z). The invariant measure is the
distribution of a system times its estimate; the weighted particles of a system are an
unbiased estimate of the target under it. The first system is properly weighted by its
own Z0, and so

    E[ Z0 (1/J) sum_j sum_i W_j^i phi(x_j^i) ] = sum_x p(x) exp(s(x)) phi(x)

after any number J of iterations, where j counts the accepted system of each iteration.

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
from tsi.log_uniform import log_uniform
from tsi.picklable import picklable
from tsi.samplers import conditional_smc as csmc
from tsi.samplers.parts.path_record import (
    ChainSample,
    PathRecord,
    empty_paths,
    summarise,
)
from tsi.samplers.parts.potentials import Potential, product
from tsi.samplers.parts.sweep_budget import SWEEP_SIZE, path_score, shared_budget
from tsi.step_keys import with_typed_key
from tsi.weights import CompensatedSum


class PIMHState(NamedTuple):
    """The accepted system and the proposed one.

    Attributes:
        done: whether the budget is spent.
        members: stored particles that are the result, [K]; those of a system are
            repeated if the next one was rejected.
        log_weights, log_potentials, finished: of the members, [K].
        log_evidence: of the first system.
        iteration: number of completed systems.
        sample: summary of one particle of the accepted system, the state of the chain.
        place: slot of that particle.
        sweep: the proposed system.
        log_accepted: log evidence of the accepted system, a compensated sum.
        bank: which of two banks of slots holds that system, in an endless chain.
        accepted: number of accepted proposals, without the first system.
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

    N rollouts are J systems of n = N / J particles. The result has N particles: those
    of the accepted system after each iteration.

    Args:
        weights: transform of the product potential, if no potential is given.
        potential: product, telescoping or uniform.
        num_iterations: J, by default 4; at least 2, since one is SMC.
        particles_per_iteration: n, instead of J.
        endless: never done; each system has all N particles, and between iterations the
            members are those of the accepted system. Needs a target with `truncate`.
        select: how one answer is chosen.

    Raises:
        ConfigurationError: for a potential without weights of prefixes, or both
            num_iterations and particles_per_iteration.
    """
    potential = product(weights) if potential is None else potential
    score = path_score(potential, "pimh")
    if num_iterations is not None and particles_per_iteration is not None:
        raise ConfigurationError(
            "pimh takes num_iterations or particles_per_iteration, not both: N is "
            "their product."
        )
    false = jnp.zeros((), bool)

    def budget(num_particles: int) -> tuple[int, int]:
        if endless:
            return 1, num_particles
        return shared_budget(num_particles, num_iterations, particles_per_iteration, 1)

    def plan(num_particles: int, max_steps: int) -> Plan:
        iterations, size = budget(num_particles)
        store = 2 * num_particles if endless else num_particles
        return Plan(size, store, iterations * max_steps)

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
            sample=summarise(empty_paths((), max_steps), score),
            place=zero,
            sweep=csmc.start_sweep(size, max_steps),
            log_accepted=CompensatedSum(jnp.full((), -jnp.inf), jnp.zeros(())),
            bank=zero,
            accepted=zero,
            parents=jnp.arange(size, dtype=jnp.int32),
        )

    def proposal_slots(state: PIMHState) -> Int[Array, "n"]:
        """Slots of the proposed system."""
        size = state.parents.shape[0]
        bank = 1 - state.bank if endless else state.iteration
        return bank * size + jnp.arange(size, dtype=jnp.int32)

    @with_typed_key
    def ask(key: Key[Array, ""], state: PIMHState) -> tuple[PIMHState, Request]:
        t = state.sweep.smc.t
        sweep = csmc.fork(key, state.sweep, potential, false)
        slots = proposal_slots(state)
        parents = slots[sweep.smc.ancestors]
        request = Request(
            parents=parents,
            slots=slots,
            extend=~sweep.smc.finished,
            depths=jnp.broadcast_to(t, slots.shape) if endless else None,
        )
        return state._replace(sweep=sweep, parents=parents), request

    @with_typed_key
    def tell(
        key: Key[Array, ""], state: PIMHState, reply: Reply
    ) -> tuple[PIMHState, ExplorerInfo]:
        no_reference = empty_paths((), state.sweep.records.log_potentials.shape[-1])
        sweep, info = csmc.weigh(state.sweep, reply, potential, false, no_reference)
        new_state = _accept_system(key, state._replace(sweep=sweep))
        return new_state, ExplorerInfo(
            state.parents,
            proposal_slots(state),
            info.ess,
            info.num_recoveries,
            info.num_invalid,
        )

    def _accept_system(key: Key[Array, ""], state: PIMHState) -> PIMHState:
        """If the proposed system is complete, accept it or keep the accepted one."""
        key_accept, key_draw = jax.random.split(key)
        smc, slots = state.sweep.smc, proposal_slots(state)
        size, num_members = slots.shape[0], state.members.shape[0]
        complete = jnp.all(smc.finished)
        first = state.iteration == 0
        # Accept every move from a system of evidence zero: -inf - -inf is NaN.
        has_no_evidence = state.log_accepted.value == -jnp.inf
        evidence = smc.evidence_sum
        log_ratio = jnp.where(
            has_no_evidence, jnp.inf, evidence.minus(state.log_accepted)
        )
        accept = log_uniform(key_accept) < log_ratio

        # First members of the last iteration, if there was one, and of this iteration.
        last_start = jnp.maximum(0 if endless else state.iteration - 1, 0) * size
        places = jnp.arange(size) + (0 if endless else state.iteration * size)

        def store(old: Array, new: Array) -> Array:
            before = jax.lax.dynamic_slice(old, (last_start,), (size,))
            return old.at[places].set(jnp.where(accept, new, before))

        index = csmc.draw(key_draw, smc.log_weights)
        path: PathRecord = jax.tree.map(lambda leaf: leaf[index], state.sweep.records)
        sample = summarise(path, score)
        next_system = state._replace(
            done=jnp.asarray(not endless)
            & ((state.iteration + 1) * size >= num_members),
            members=store(state.members, slots),
            log_weights=store(state.log_weights, smc.log_weights),
            log_potentials=store(state.log_potentials, smc.log_potentials),
            finished=store(state.finished, smc.finished),
            log_evidence=jnp.where(first, smc.log_evidence, state.log_evidence),
            iteration=state.iteration + 1,
            sample=jax.tree.map(
                lambda new, old: jnp.where(accept, new, old), sample, state.sample
            ),
            place=jnp.where(accept, slots[index], state.place),
            sweep=csmc.start_sweep(size, state.sweep.records.log_potentials.shape[-1]),
            log_accepted=jax.tree.map(
                lambda new, old: jnp.where(accept, new, old),
                evidence,
                state.log_accepted,
            ),
            bank=jnp.where(accept, 1 - state.bank, state.bank),
            accepted=state.accepted + (accept & ~first),
        )
        return jax.tree.map(lambda a, b: jnp.where(complete, a, b), next_system, state)

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
        default_particles=SWEEP_SIZE,
    )
