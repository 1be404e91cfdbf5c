"""Power-SMC targets p^alpha for every ramp and proposal, on tables and on texts."""

import inspect
import itertools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from test_engine import PROBLEMS, engine, extract
from test_reasoning import enumerate_texts

import tsi
from tsi import samplers
from tsi.bench.conformance import check_sampler, target_checks
from tsi.bench.robustness import Programs
from tsi.errors import CapabilityError, ConfigurationError
from tsi.explorer import Reply
from tsi.reasoning.particles import ReasoningParams
from tsi.results.estimand import estimand_of
from tsi.rewards.reward import NoReward
from tsi.run import run
from tsi.targets.examples import unequal_lengths
from tsi.targets.linear_gaussian import LinearGaussianTarget
from tsi.targets.tabular import TabularTarget

KEY = jax.random.key(0)
module = sys.modules["tsi.samplers.power_smc"]


def chain(alpha: float | None = None, max_steps: int = 5) -> TabularTarget:
    """Two symbols and an end; drawn token by token from p^alpha, or from p."""
    initial = np.array([0.5, 0.3, 0.2])
    transition = np.array([[0.6, 0.25, 0.15], [0.2, 0.4, 0.4], [0.3, 0.4, 0.3]])
    proposals = {}
    if alpha is not None:
        for name, table in (("initial", initial), ("transition", transition)):
            powers = table**alpha
            proposals[f"proposal_{name}"] = powers / powers.sum(-1, keepdims=True)
    rng = np.random.default_rng(0)
    potentials = 0.5 * rng.standard_normal((max_steps, 3))
    return TabularTarget(initial, transition, potentials, end=2, **proposals)


def sum_of_powers(target: TabularTarget, alpha: float) -> float:
    """Sum of p^alpha over all solutions, one by one."""
    total = 0.0
    for length in range(1, target.max_steps + 1):
        for path in itertools.product(range(target.num_symbols), repeat=length):
            ended = path[-1] == target.end
            if target.end in path[:-1] or (length < target.max_steps and not ended):
                continue
            p = target.initial[path[0]]
            for old, new in itertools.pairwise(path):
                p *= target.transition[old, new]
            total += p**alpha
    return total


EXACT = {
    "no ramp": (samplers.power_smc(3.0, ramp_steps=0), 3.0),
    "a ramp": (samplers.power_smc(3.0, ramp_steps=3), 3.0),
    "a ramp beyond the end": (samplers.power_smc(3.0, ramp_steps=50), 3.0),
    "a flatter target": (samplers.power_smc(0.4, ramp_steps=2), None),
    "drawn from p, at every step": (
        samplers.power_smc(
            2.0, schedule=samplers.every_step, resampling=samplers.multinomial
        ),
        None,
    ),
    "with rewards": (samplers.power_smc(2.0, potential=samplers.product()), 2.0),
    "with the last reward": (
        samplers.power_smc(2.0, ramp_steps=3, potential=samplers.telescoping()),
        1.5,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", EXACT)
def test_evidence_and_posterior_are_those_of_the_table(name):
    explorer, proposal = EXACT[name]
    target = chain(proposal)
    result = Programs(explorer, 16, 20_000)(target, jax.random.key(5))
    checks = target_checks(name, target, explorer, result)
    assert len(checks) == 2
    assert [check for check in checks if not check.passed] == []
    # A bias of 3 % would be four standard errors or more.
    evidence = np.exp(np.asarray(result.state.log_evidence, np.float64))
    assert evidence.std() / evidence.mean() / np.sqrt(evidence.size) < 0.0075
    if "reward" not in name:
        truth = sum_of_powers(target, explorer.power)
        assert abs(evidence.mean() / truth - 1) < 0.03


@pytest.mark.slow
def test_it_keeps_every_promise():
    check_sampler(lambda: samplers.power_smc(2.0, ramp_steps=3)).raise_if_failed()


def test_the_evidence_is_exact_where_every_step_is_proposed_from_its_power():
    # The normaliser of p^alpha is the same after every symbol.
    row = np.array([0.5, 0.3, 0.2])
    tempered = row**4 / (row**4).sum()
    target = TabularTarget(
        row,
        np.tile(row, (3, 1)),
        np.zeros((6, 3)),
        proposal_initial=tempered,
        proposal_transition=np.tile(tempered, (3, 1)),
    )
    result = tsi.run(samplers.power_smc(4.0, ramp_steps=0), target, KEY, 16)
    expected = 6 * np.log((row**4).sum())
    assert float(result.state.log_evidence) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(result.state.log_weights, 0.0, atol=1e-5)


def tell(explorer, state, log_probs, corrections, finished):
    zeros = jnp.zeros(len(log_probs))
    reply = Reply(
        zeros, jnp.asarray(corrections), jnp.asarray(log_probs), jnp.asarray(finished)
    )
    state, info = explorer.tell(KEY, state, reply)
    return state, float(info.exponent)


def test_a_weight_is_the_power_of_the_path_over_its_proposal():
    explorer = samplers.power_smc(4.0, ramp_steps=3, schedule=samplers.never)
    state = explorer.init(KEY, 3, 4)
    # log p, and log p - log q, of each step; the last particle ends after the first.
    # Numbers of particles that have finished are arbitrary.
    log_p = np.array([[-1.0, -2.0, -0.5], [-0.5, -1.5, 9.0], [-2.0, 9.0, 9.0]])
    ratio = np.array([[0.2, -0.4, 0.1], [0.3, 0.0, 9.0], [-0.2, 9.0, 9.0]])
    finished = np.array([[False, False, True], [False, True, True], [True] * 3])
    taken = np.array([[True] * 3, [True, True, False], [True, False, False]])
    true_log_p, true_ratio = np.where(taken, log_p, 0), np.where(taken, ratio, 0)
    expected = [2.0, 3.0, 4.0]
    for t in range(3):
        state, _ = explorer.ask(KEY, state)
        state, exponent = tell(explorer, state, log_p[t], ratio[t], finished[t])
        assert exponent == pytest.approx(expected[t])
        paths, corrections = true_log_p[: t + 1].sum(0), true_ratio[: t + 1].sum(0)
        weights = (exponent - 1.0) * paths + corrections
        found = np.asarray(state.log_weights) + float(state.log_evidence)
        np.testing.assert_allclose(found, weights, atol=1e-5)
    assert bool(state.done)


def test_the_exponent_is_alpha_when_all_have_finished_early():
    explorer = samplers.power_smc(4.0, ramp_steps=10)
    state, _ = explorer.ask(KEY, explorer.init(KEY, 2, 10))
    state, exponent = tell(explorer, state, [-1.0, -2.0], [0.0, 0.0], [False, True])
    assert exponent == pytest.approx(1.3)
    state, _ = explorer.ask(KEY, state)
    state, exponent = tell(explorer, state, [-1.0, 7.0], [0.0, 7.0], [True, True])
    assert exponent == 4.0
    # Both solutions have p = exp(-2).
    np.testing.assert_allclose(state.log_weights, 0.0, atol=1e-6)
    assert float(state.log_evidence) == pytest.approx(-6.0, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 4.0])
def test_a_path_that_the_policy_cannot_take_has_weight_zero(alpha):
    explorer = samplers.power_smc(alpha, ramp_steps=2)
    state, _ = explorer.ask(KEY, explorer.init(KEY, 2, 3))
    state, _ = tell(explorer, state, [-jnp.inf, -1.0], [-jnp.inf, 0.0], [False, True])
    assert state.log_weights[0] == -jnp.inf
    state, _ = tell(explorer, state, [-1.0, 0.0], [0.0, 0.0], [True, True])
    assert state.log_weights[0] == -jnp.inf
    assert np.isfinite(float(state.log_evidence))


@pytest.mark.long
def test_power_sampling_by_mcmc_has_the_same_posterior():
    target, alpha = chain(4.0), 4.0
    shares = []
    for explorer, size in (
        (samplers.power_smc(alpha), 64),
        (samplers.power_sampling(alpha), 8),
    ):
        result = Programs(explorer, size, 4_000)(target, jax.random.key(9))
        # Evidence and weights together weigh the runs as well.
        log_w = result.state.log_weights + result.state.log_evidence[:, None]
        weights = np.exp(np.asarray(log_w, np.float64))
        first = np.asarray(result.particles.symbols)[..., 0]
        share = [(weights * (first == k)).mean() for k in range(3)]
        shares.append(np.array(share) / np.sum(share))
    np.testing.assert_allclose(shares[0], shares[1], atol=0.02)


@pytest.mark.long
def test_the_evidence_of_a_language_model_is_the_sum_of_powers_of_its_texts():
    vocabulary, tokens, alpha = 3, 4, 2.0
    policy, reward = tiny.models(vocabulary, sharpness=2.0)
    target = tiny.target(
        boundary=tiny.boundary(vocabulary, b"a"),
        reward=NoReward(),
        max_step_tokens=2,
        max_tokens=tokens,
        max_steps=tokens,
    )
    params = ReasoningParams(policy, reward, tiny.prompts("ab"), jnp.float32(1.0))
    everything = enumerate_texts(target, params, vocabulary)
    truth = sum(np.exp(alpha * log_p) for _, log_p, _, _ in everything)
    explorer = samplers.power_smc(alpha, ramp_steps=2)
    drawn = params._replace(proposal_temperature=jnp.float32(1 / alpha))
    many = jax.jit(
        jax.vmap(
            lambda key, params: run(explorer, target, key, 16, params).state,
            (0, None),
        )
    )
    state = many(jax.random.split(jax.random.key(1), 500), drawn)
    evidence = np.exp(np.asarray(state.log_evidence, np.float64))
    error = evidence.std() / np.sqrt(evidence.size)
    assert abs(evidence.mean() - truth) < 4 * error
    assert error < 0.02 * truth


@pytest.mark.long
def test_the_engine_gives_what_tsi_run_gives():
    explorer, key, target = samplers.power_smc(3.0), jax.random.key(7), tiny.target()
    policy, reward = tiny.models()
    results = engine().run(explorer, key, PROBLEMS, 8, extract=extract)
    alone = jax.jit(lambda key, params: run(explorer, target, key, 8, params))
    for problem, result in zip(PROBLEMS, results, strict=True):
        prompts = tiny.prompts(problem.prompt)
        params = ReasoningParams(policy, reward, prompts, jnp.float32(1.0))
        final = alone(jax.random.fold_in(key, problem.id), params)
        rows = zip(final.particles.tokens, final.particles.lengths, strict=True)
        assert [tiny.decode(row[:n].tolist()) for row, n in rows] == result.texts
        assert result.log_evidence == pytest.approx(
            float(final.state.log_evidence), abs=1e-3
        )
        exponents = result.steps.infos["exponent"]
        assert exponents[-1] == 3.0
        assert (np.diff(exponents) >= 0).all()


def test_it_claims_a_weighted_sample_of_a_power():
    estimand = estimand_of(samplers.power_smc(4.0))
    assert estimand.is_weighted_sample
    assert estimand.evidence == "sum of p(path)^4 exp(path log weight)"


@pytest.mark.parametrize(
    "arguments",
    [
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"ramp_steps": -1},
        {"potential": samplers.terminal()},
        {"potential": samplers.latest()},
    ],
)
def test_invalid_arguments_are_refused(arguments):
    with pytest.raises(ConfigurationError, match="power_smc"):
        samplers.power_smc(**arguments)


def test_a_target_that_does_not_know_its_log_prob_is_refused():
    class Blind(LinearGaussianTarget):
        log_prob = None

    with pytest.raises(CapabilityError, match="log_prob"):
        tsi.run(samplers.power_smc(), Blind(), KEY, 4)


def mutant_of(old: str, new: str):
    """`power_smc` with a change in its source."""
    source = inspect.getsource(module)
    assert source.count(old) == 1
    mutant = types.ModuleType(module.__name__)
    exec(source.replace(old, new), mutant.__dict__)
    return mutant.power_smc


MUTANTS = {
    "the past does not follow the ramp": (
        "old_population._replace(log_base=old_population.log_base + past)",
        "old_population",
    ),
    "the past follows by the whole exponent": (
        "exponent - state.exponent)",
        "exponent - 1.0)",
    ),
    "p counts once more": ("exponent - 1.0)\n        past", "exponent)\n        past"),
    "the last power is that of the ramp": (
        "jnp.where(all_finished, jnp.asarray(alpha, exponent.dtype), exponent)",
        "exponent",
    ),
    "the ramp is one step late": (
        "ramp(old_population.t + 1)",
        "ramp(old_population.t + 0)",
    ),
    "log p is not forked": (
        "log_probs=state.log_probs[ancestors]",
        "log_probs=state.log_probs",
    ),
    "log p of the last step alone": (
        "log_probs=state.log_probs + step",
        "log_probs=step",
    ),
    "weights are not reset": ("jnp.where(is_resampling, equal, log_w)", "log_w"),
    "the correction is dropped": ("reply.log_corrections + ", ""),
}
HARMLESS = ("the ramp is one step late",)
"""Changes of the path to the target, which leave the target unchanged."""


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught_and_another_ramp_is_not(name):
    explorer = mutant_of(*MUTANTS[name])(
        2.0, ramp_steps=8, schedule=samplers.every_step
    )
    found = []
    for index, target in enumerate((chain(1.5), unequal_lengths())):
        result = Programs(explorer, 8, 10_000)(target, jax.random.key(20 + index))
        checks = target_checks(name, target, explorer, result)
        found += [check for check in checks if check.passed is False]
    assert bool(found) == (name not in HARMLESS)
