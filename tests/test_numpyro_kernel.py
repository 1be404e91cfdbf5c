"""Explorers as numpyro kernels: right answers, chains, resuming, what is collected."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC
from numpyro_programs import GAUSSIAN, gaussian

from tsi.errors import ConfigurationError
from tsi.numpyro import ExplorerKernel
from tsi.samplers.parts.potentials import product
from tsi.samplers.suffix_metropolis import suffix_metropolis
from tsi.targets.examples import unequal_lengths

KEY = jax.random.key(0)
ENDLESS = suffix_metropolis(product("odds"), endless=True)
TABLE = unequal_lengths()


def last_state(particles):
    return {"x": particles.carry}


def path(particles):
    return {"symbols": particles.symbols}


def gaussian_kernel(**changes):
    return ExplorerKernel(ENDLESS, gaussian(), **({"collect": last_state} | changes))


def table_kernel():
    return ExplorerKernel(ENDLESS, TABLE, collect=path)


def mcmc(kernel, chains=4, samples=50, method="vectorized", **changes):
    return MCMC(
        kernel,
        num_samples=samples,
        num_chains=chains,
        chain_method=method,
        progress_bar=False,
        jit_model_args=True,
        **({"num_warmup": 10} | changes),
    )


@pytest.mark.long
def test_chains_have_the_kalman_filters_posterior(capsys):
    run = mcmc(gaussian_kernel(), chains=64, samples=500)
    run.run(KEY, None)
    samples = run.get_samples(group_by_chain=True)
    x = np.asarray(samples["x"], np.float64)
    truth = GAUSSIAN.kalman()
    for value, mean in ((x, truth.mean), ((x - truth.mean) ** 2, truth.variance)):
        # 64 chains are independent, whatever their autocorrelation.
        means = value.mean(1)
        error = means.std(ddof=1) / 8
        assert error < 0.02
        assert abs(means.mean() - mean) / error < 4
    assert gelman_rubin(x) < 1.01
    ess = effective_sample_size(x)
    assert 0.05 * x.size < ess < x.size
    # The same from the spread of the chains' means, to a factor.
    spread = truth.variance / x.mean(1).var(ddof=1) * 64
    assert 0.5 < ess / spread < 2.0
    run.print_summary()
    printed = capsys.readouterr().out
    for name in ("x", "log_density", "log_potential", "r_hat"):
        assert name in printed


@pytest.mark.long
def test_chains_visit_paths_of_unequal_length_as_enumerated():
    run = mcmc(table_kernel(), chains=64, samples=400)
    run.run(KEY, TABLE.params)
    samples = run.get_samples(group_by_chain=True)
    truth = TABLE.truth(product("odds").path_log_weight)
    lengths = (truth.symbols >= 0).sum(1)
    np.testing.assert_array_equal(
        samples["length"], (np.asarray(samples["symbols"]) >= 0).sum(-1)
    )
    for length in range(1, 5):
        share = (np.asarray(samples["length"]) == length).mean(1)
        error = share.std(ddof=1) / 8
        expected = truth.posterior[lengths == length].sum()
        assert error < 0.02
        assert abs(share.mean() - expected) / error < 4


@pytest.mark.long
def test_chains_are_the_same_sequential_or_vectorized():
    runs = [mcmc(table_kernel(), 2, method=m) for m in ("sequential", "vectorized")]
    for run in runs:
        run.run(KEY, TABLE.params)
    a, b = (run.get_samples(group_by_chain=True) for run in runs)
    assert a["symbols"].shape == (2, 50, 4)
    np.testing.assert_array_equal(a["symbols"], b["symbols"])
    assert len({chain.tobytes() for chain in np.asarray(a["symbols"])}) == 2


@pytest.mark.long
@pytest.mark.parametrize(("method", "chains"), [("sequential", 1), ("vectorized", 3)])
def test_a_resumed_chain_goes_on_without_a_new_start(method, chains):
    whole = mcmc(table_kernel(), chains, 40, method, num_warmup=0)
    whole.run(KEY, TABLE.params)
    parts = mcmc(table_kernel(), chains, 20, method, num_warmup=0)
    parts.run(KEY, TABLE.params)
    first = parts.get_samples(group_by_chain=True)
    parts.post_warmup_state = parts.last_state
    parts.run(parts.last_state.rng_key, TABLE.params)
    second = parts.get_samples(group_by_chain=True)
    together = np.concatenate([first["symbols"], second["symbols"]], axis=1)
    expected = whole.get_samples(group_by_chain=True)["symbols"]
    np.testing.assert_array_equal(together, expected)
    np.testing.assert_array_equal(parts.last_state.exploration.state.iteration, 40)
    # With another key the chain goes on from there along another path.
    parts.post_warmup_state = parts.last_state
    parts.run(jax.random.key(7), TABLE.params)
    np.testing.assert_array_equal(parts.last_state.exploration.state.iteration, 60)


def test_resuming_never_calls_init(monkeypatch):
    run = mcmc(table_kernel(), 1, 5)
    run.run(KEY, TABLE.params)
    run.post_warmup_state = run.last_state
    monkeypatch.setattr(run.sampler, "init", None)
    run.run(KEY, TABLE.params)
    assert int(run.last_state.exploration.state.iteration) == 20


@pytest.mark.long
def test_warmup_is_kept_and_extra_fields_are_collected():
    run = mcmc(table_kernel(), 2)
    run.warmup(KEY, TABLE.params)
    after = run.post_warmup_state.exploration.state
    np.testing.assert_array_equal(after.iteration, 10)
    fields = ("exploration.state.accepted", "exploration.turn")
    run.run(KEY, TABLE.params, extra_fields=fields)
    extra = run.get_extra_fields(group_by_chain=True)
    accepted, turns = (np.asarray(extra[name]) for name in fields)
    assert (np.diff(accepted) >= 0).all()
    assert (accepted[:, -1] > after.accepted).all()
    assert (np.diff(turns) >= 1).all()
    np.testing.assert_array_equal(run.last_state.exploration.state.iteration, 60)


@pytest.mark.long
def test_a_whole_run_may_be_vmapped():
    def one(key):
        run = mcmc(table_kernel(), 1, 5)
        run.run(key, TABLE.params)
        return run.get_samples()["symbols"]

    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(one))(keys)
    np.testing.assert_array_equal(together[1], one(keys[1]))


PARALLEL = """
import jax, numpy as np
from test_numpyro_kernel import KEY, TABLE, mcmc, table_kernel
assert jax.local_device_count() == 2
runs = [mcmc(table_kernel(), 2, method=m) for m in ("parallel", "vectorized")]
for run in runs:
    run.run(KEY, TABLE.params)
a, b = (run.get_samples(group_by_chain=True)["symbols"] for run in runs)
np.testing.assert_array_equal(a, b)
parallel = runs[0]
parallel.post_warmup_state = parallel.last_state
parallel.run(parallel.last_state.rng_key, TABLE.params)
np.testing.assert_array_equal(parallel.last_state.exploration.state.iteration, 110)
print("same")
"""


@pytest.mark.long
def test_chains_on_two_devices_are_the_same():
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), str(here)])
    two = "--xla_force_host_platform_device_count=2"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {two}"
    result = subprocess.run(
        [sys.executable, "-c", PARALLEL],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "same", result.stderr


def test_what_does_not_fit_is_refused():
    finite = suffix_metropolis(product("odds"))
    with pytest.raises(ConfigurationError, match="endless=True"):
        ExplorerKernel(finite, gaussian(), num_particles=4)
    several = suffix_metropolis(product("odds"), endless=True, num_chains=2)
    kernel = ExplorerKernel(several, gaussian(), num_particles=2)
    with pytest.raises(ConfigurationError, match="num_chains=1"):
        kernel.init(KEY, 0, None, (), {})
    with pytest.raises(ConfigurationError, match="init_params"):
        gaussian_kernel().init(KEY, 0, jnp.zeros(3), (), {})
    with pytest.raises(ConfigurationError, match=r"one argument.*2 positional"):
        table_kernel().init(KEY, 0, None, (1, 2), {})
    with pytest.raises(ConfigurationError, match=r"one argument.*weights"):
        table_kernel().init(KEY, 0, None, (), {"weights": 1})
    with pytest.raises(ConfigurationError, match=r"gaussian_start.*weights"):
        gaussian_kernel().init(KEY, 0, None, (), {"weights": 1})
