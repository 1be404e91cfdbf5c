"""numpyro programs whose truth is known otherwise, and how tests run them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import tsi
from tsi import samplers
from tsi.numpyro import program_target
from tsi.targets.examples import EXAMPLES
from tsi.targets.linear_gaussian import LinearGaussianTarget

RUNS = 20_000
GAUSSIAN = LinearGaussianTarget()
OBSERVED = jnp.asarray(GAUSSIAN.observations, jnp.float32)


def gaussian_start(params):
    return jnp.zeros(())


def gaussian_scale(t):
    return jnp.where(t == 0, GAUSSIAN.initial_scale, GAUSSIAN.transition_scale)


def gaussian_step(t, x, params):
    """The program of `tsi.targets.linear_gaussian`."""
    x = numpyro.sample("x", dist.Normal(GAUSSIAN.decay * x, gaussian_scale(t)))
    numpyro.sample("y", dist.Normal(x, GAUSSIAN.noise_scale), obs=OBSERVED[t])
    return x


def optimal_proposal(t, x, params):
    """p(x_t | x_{t-1}, y_t)."""
    prior, noise = gaussian_scale(t) ** 2, GAUSSIAN.noise_scale**2
    gain = prior / (prior + noise)
    mean = GAUSSIAN.decay * x + gain * (OBSERVED[t] - GAUSSIAN.decay * x)
    numpyro.sample("x", dist.Normal(mean, jnp.sqrt(gain * noise)))


def gaussian(**changes):
    arguments = {"max_steps": GAUSSIAN.max_steps} | changes
    return program_target(gaussian_start, gaussian_step, **arguments)


class Table:
    """A `TabularTarget` written as a program."""

    def __init__(self, name):
        self.target = EXAMPLES[name]()

    def start(self, params):
        symbols = jnp.full(self.target.max_steps, -1, jnp.int32)
        return {"last": jnp.zeros((), jnp.int32), "symbols": symbols}

    def logits(self, t, last, params, proposal=False):
        first, later = params.log_initial, params.log_transition
        if proposal:
            first, later = params.log_proposal_initial, params.log_proposal_transition
        return jnp.where(t == 0, first, later[last])

    def step(self, t, carry, params):
        logits = self.logits(t, carry["last"], params)
        symbol = numpyro.sample("symbol", dist.Categorical(logits=logits))
        numpyro.factor("score", params.log_potentials[t, symbol])
        symbol = symbol.astype(jnp.int32)
        return {"last": symbol, "symbols": carry["symbols"].at[t].set(symbol)}

    def proposal(self, t, carry, params):
        logits = self.logits(t, carry["last"], params, proposal=True)
        numpyro.sample("symbol", dist.Categorical(logits=logits))

    def end(self, t, carry, params):
        return carry["last"] == params.end

    def program(self, **changes):
        arguments = {
            "max_steps": self.target.max_steps,
            "end": self.end,
            "proposal": self.proposal,
        }
        return program_target(self.start, self.step, **(arguments | changes))


def many(target, sampler, *, params=None, num_particles=8, seed=1, runs=RUNS):
    """Results of many runs: carries [R, N, ...], log weights and log evidence."""

    def one(key):
        run = tsi.run(sampler, target, key, num_particles, params)
        particles = run.particles
        return particles.carry, run.state.log_weights, run.state.log_evidence

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), runs))


def z_score(log_evidence, truth, precision=0.005):
    """Standard errors between the mean evidence and the true one."""
    evidence = np.exp(np.asarray(log_evidence, np.float64))
    error = evidence.std(ddof=1) / np.sqrt(len(evidence))
    assert error < precision * truth  # so that a bias of 2 % is four standard errors
    return (evidence.mean() - truth) / error


def likelihood_weighting(potential=None):
    """Draw and weigh, without resampling."""
    potential = samplers.product("odds") if potential is None else potential
    return samplers.smc(schedule=samplers.never, potential=potential)


SMC = samplers.smc(potential=samplers.product("odds"))
