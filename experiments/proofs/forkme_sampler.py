"""A new sampler with its check and its curve: copy this file and change it.

Ancestors are drawn in proportion to v = sqrt(w), which keeps more prefixes alive; an
offspring of i has weight mean(v) w_i / v_i. Run it with
``python -m tsi.experiments.proofs.forkme_sampler``, or only check it with
``tsi check tsi.experiments.proofs.forkme_sampler:make_sampler``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tsi import Sampler, check_sampler, samplers, weights
from tsi.experiments import embedded_world


class State(NamedTuple):  # the fields that every sampler has
    log_weights: Array
    log_evidence: Array
    log_potentials: Array
    finished: Array


def make_sampler() -> Sampler:
    def init(key: Array, num_particles: int) -> State:
        zeros = jnp.zeros(num_particles)
        return State(zeros, jnp.zeros(()), zeros, zeros > 0)

    def ask(key: Array, state: State) -> tuple[State, Array]:  # draw ancestors
        log_v = 0.5 * state.log_weights
        ancestors = samplers.systematic(key, log_v, log_v.size)
        rest = weights.log_mean_exp(log_v) + log_v[ancestors]  # mean(v) w / v
        log_w = jnp.where(weights.all_dead(log_v), 0.0, rest)
        last, ended = state.log_potentials[ancestors], state.finished[ancestors]
        return State(log_w, state.log_evidence, last, ended), ancestors

    def tell(  # weigh the extended prefixes
        key: Array, state: State, potentials: Array, corrections: Array, ended: Array
    ) -> tuple[State, dict[str, Array]]:
        gain = weights.sanitise(potentials + corrections)
        log_w = state.log_weights + jnp.where(state.finished, 0.0, gain)
        mean = weights.log_mean_exp(log_w)
        log_w = jnp.where(mean > -jnp.inf, log_w - mean, 0.0)
        last = jnp.where(state.finished, state.log_potentials, potentials)
        return State(log_w, state.log_evidence + mean, last, state.finished | ended), {}

    return Sampler(init, ask, tell, samplers.product().path_log_weight)


if __name__ == "__main__":
    print(check_sampler(make_sampler))
    world, sampler, key = embedded_world("chain", 60), make_sampler(), jax.random.key(0)
    for n in (1, 4, 16):
        run = world.engine.run(sampler, key, world.problems, n, extract=world.extract)
        correct = [*map(world.is_correct, world.problems, (r.selected for r in run))]
        error = np.std(correct) / len(correct) ** 0.5
        print(f"N = {n}: {100 * np.mean(correct):.0f} ± {100 * error:.0f} % correct")
