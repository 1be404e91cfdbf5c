"""The bench for new samplers: what it catches, and that it names the place."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi import samplers
from tsi.bench.conformance import checks_of
from tsi.bench.explorer_checks import request_checks
from tsi.bench.key_discipline import key_check
from tsi.bench.permutation import permutation_check
from tsi.bench.unbiasedness import judge_tabular
from tsi.experiments.proofs import forkme_sampler
from tsi.experiments.proofs.claims import CLAIMS
from tsi.experiments.proofs.conformance_table import format_table
from tsi.experiments.proofs.mutations import MISTAKES, NAIVE_SUM, apply_mistake
from tsi.targets.examples import smooth
from tsi.targets.tabular import TabularTarget

KEY = jax.random.key(0)


def test_a_key_used_twice_is_named_with_its_line():
    plain = samplers.smc()

    def ask(key, state):
        jitter = jax.random.normal(key, ())  # this line spends the key
        state, ancestors = plain.ask(key, state)
        return state._replace(log_evidence=state.log_evidence + 0.0 * jitter), ancestors

    check = key_check(plain._replace(ask=ask), 8, KEY)
    assert check.passed is False
    assert Path(__file__).name in check.detail
    assert key_check(plain, 8, KEY).passed


def test_a_key_kept_for_the_next_turn_is_seen():
    claim = CLAIMS["smc"]
    assert key_check(MISTAKES["reused key"](claim.make()), 8, KEY).passed is False


@pytest.mark.long
def test_choosing_by_place_is_seen_and_islands_are_not_mistaken_for_it():
    def first_half_twice(key, log_weights, num_samples):
        return jnp.arange(num_samples, dtype=jnp.int32) // 2

    by_place = samplers.smc(resampling=first_half_twice, schedule=samplers.every_step)
    assert permutation_check(by_place, 8, KEY).passed is False
    for fair in (
        samplers.smc(num_islands=2),
        samplers.dvts(2),
        samplers.rebase(),
        samplers.smc_steering(),
    ):
        assert permutation_check(fair, 8, KEY).passed


@pytest.mark.long
def test_explorers_that_never_end_or_call_prefixes_solutions_are_seen():
    plain = samplers.quest(0.5)

    def forever(key, state, reply):
        state, info = plain.tell(key, state, reply)
        return state._replace(done=jnp.zeros((), bool)), info

    def hasty(key, state, reply):
        state, info = plain.tell(key, state, reply)
        every = jnp.ones_like(state.finished)
        return state._replace(done=jnp.ones((), bool), finished=every), info

    def short(num_particles, max_steps):
        plan = samplers.quest(0.5, num_chains=2).plan(num_particles, max_steps)
        return plan._replace(turns=plan.turns // 2)

    def outside(key, state):
        state, request = plain.ask(key, state)
        return state._replace(members=state.members + 100), request

    for broken, promises in (
        (plain._replace(tell=hasty), ["ending"]),
        (plain._replace(ask=outside), ["requests"]),
        # It runs on into slots that there are not.
        (plain._replace(tell=forever), ["requests"]),
        (samplers.quest(0.5, num_chains=2)._replace(plan=short), ["ending"]),
    ):
        checks = request_checks(broken, 8, KEY)
        assert [check.promise for check in checks if not check.passed] == promises


@pytest.mark.slow
def test_an_explorer_that_ends_in_time_passes():
    checks = request_checks(samplers.quest(0.5), 8, KEY)
    assert all(check.passed for check in checks)


def test_weight_on_a_path_that_is_no_solution_breaks_the_posterior():
    target = smooth()
    truth = target.truth(samplers.uniform().path_log_weight)
    rows = np.random.default_rng(0).choice(
        len(truth.posterior), 5_000, p=truth.posterior
    )
    symbols, weights = truth.symbols[rows][:, None], np.zeros((5_000, 1))
    whole = judge_tabular(target, truth, symbols, weights, np.zeros(5_000))
    assert whole.p_value > 1e-3
    cut = symbols.copy()
    cut[17, 0, -1] = -1
    one_cut = judge_tabular(target, truth, cut, weights, np.zeros(5_000))
    assert one_cut.p_value == 0.0


CAUGHT_ELSEWHERE = (
    "bfloat16",
    "clipped",
    "counts of 0",
    "equal keys",
    "late key",
    "clipped correction",
    "floored correction",
    "light dropped",
    NAIVE_SUM,
)
"""Mistakes that tests of the promises they break make as well, at less cost."""


@pytest.mark.long
@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(m, marks=[pytest.mark.slow] if m in CAUGHT_ELSEWHERE else [])
        for m in (*MISTAKES, NAIVE_SUM)
    ],
)
def test_each_typical_mistake_is_caught_in_a_particle_filter(mistake):
    verdict = apply_mistake("particle_filter", mistake)
    assert verdict.reason is None
    assert verdict.caught_by is not None


def test_what_cannot_be_got_wrong_is_said_with_its_reason():
    assert apply_mistake("beam_search", "reused key").reason == "draws nothing"
    assert apply_mistake("greedy", "wrong ancestor").reason == "one particle"
    assert apply_mistake("mcts", "late reward").reason == "no target"
    assert apply_mistake("quest", "weights not reset").reason == "no weights to reset"
    assert apply_mistake("quest", NAIVE_SUM).reason == "no scheme to choose"
    assert apply_mistake("self_consistency", "counts of 0").reason == "no reward"
    # Its key is split, and no number is drawn with the parts.
    assert apply_mistake("dvts", "late key").reason == "draws nothing"
    floored = apply_mistake("power_smc", "floored correction")
    assert floored.reason == "log p is -inf as well"


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "mistake", "promise"),
    [
        ("finished_branch_smc", "late key", "keys"),
        ("power_sampling_released", "late key", "keys"),
        ("power_smc", "clipped correction", "shift"),
        ("power_sampling", "clipped correction", "shift"),
    ],
)
def test_the_bench_sees_late_keys_of_explorers_and_corrections_beside_a_power(
    name, mistake, promise
):
    assert apply_mistake(name, mistake, 400).caught_by == promise


@pytest.mark.slow
def test_the_sampler_to_copy_is_short_and_right():
    source = Path(forkme_sampler.__file__).read_text()
    assert len(source.splitlines()) <= 60
    assert "check_sampler(make_sampler)" in source
    checks = list(checks_of(forkme_sampler.make_sampler(), num_runs=2_000))
    assert [check for check in checks if check.passed is False] == []


def test_the_table_says_no_where_a_claim_is_broken():
    row = {
        "sampler": "a",
        "target": "p(x)",
        "numbers": {"evidence, smooth": 9.0, "posterior, smooth": 1e-9},
        "others_kept": 6,
        "others": 7,
        "passed": False,
        "runs": 100,
        "seconds": 1.0,
    }
    lines = format_table([row, row | {"target": "none", "numbers": {}}]).splitlines()
    assert "NO" in lines[2]
    assert "+9.00" in lines[2]
    assert "1e-09" in lines[2]
    assert "BROKEN" in lines[3]


def test_every_constructor_is_judged():
    made = {name.split(",")[0] for name in CLAIMS}
    not_samplers = {
        "expansion",
        "ess_below",
        "every_step",
        "never",
        "by_priority",
        "uct",
        "puct",
        "at_mean_weight",
        "evidence_bounds",
        "fit_twist",
        "optimal_resampling",
        "island_argmax",
        "rebase_allocation",
        "top_k_replicate",
        "multinomial",
        "residual",
        "ssp",
        "stratified",
        "systematic",
        "latest",
        "product",
        "telescoping",
        "terminal",
        "uniform",
        "geometric",
        "conditional_multinomial",
        "conditional_systematic",
        "systematic_from",
    }
    constructors = {n for n in samplers.__all__ if n[0].islower()} - not_samplers
    assert constructors <= made
    # The others are variants: `rebase_released` is made by `rebase`.
    for name in made - constructors:
        assert any(name.startswith(f"{constructor}_") for constructor in constructors)
    assert isinstance(smooth(), TabularTarget)


def takes_a_scheme(name):
    constructor = getattr(samplers, name)
    if name == "by_priority" or not inspect.isfunction(constructor):
        return False
    return "resampling" in inspect.signature(constructor).parameters


@pytest.mark.parametrize("name", [*filter(takes_a_scheme, samplers.__all__)])
def test_a_deterministic_scheme_states_no_target(name):
    """Its offspring have no expectation in which the estimate could be unbiased."""
    constructor = getattr(samplers, name)
    best = constructor(resampling=samplers.top_k_replicate(2))
    assert best.path_log_weight is None
    assert constructor().path_log_weight is not None


def test_every_kind_of_particle_method_takes_a_scheme():
    names = set(filter(takes_a_scheme, samplers.__all__))
    assert {"smc", "twisted_smc", "tempered_smc", "waste_free_smc"} <= names
