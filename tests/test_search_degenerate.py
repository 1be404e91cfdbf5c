"""Searches on tables that offer nothing, everything, or no number at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tsi
from tsi import samplers
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.explorer import Explorer
from tsi.samplers.parts import thompson
from tsi.targets.examples import peaked, smooth, unequal_lengths

SEARCHES = {
    "mcts": samplers.mcts,
    "uct": lambda: samplers.mcts(bonus=samplers.uct(), to_end=False),
    "ab_mcts": samplers.ab_mcts,
    "lookahead": samplers.lookahead_search,
    "step_beam": samplers.step_beam_search,
    "step_beam, released": lambda: samplers.step_beam_search(variant="released"),
}
SHAPE = smooth()
KEYS = jax.random.split(jax.random.key(1), 50)


def tables():
    """Parameters by name, all of one shape."""
    plain, ending = smooth().params, unequal_lengths().params
    scores = plain.log_potentials

    def filled(value):
        return plain._replace(log_potentials=jnp.full_like(scores, value))

    return {
        "all dead": filled(-jnp.inf),
        "all not a number": filled(jnp.nan),
        "all infinite, not a number": filled(jnp.inf),
        "zero or one": plain._replace(
            log_potentials=jnp.where(scores > 0, 16.64, -jnp.inf)
        ),
        "some not a number": ending._replace(
            log_potentials=ending.log_potentials.at[:, 0].set(jnp.nan)
        ),
        "finished at once": ending._replace(
            log_initial=jnp.array([-jnp.inf, -jnp.inf, 0.0]),
            log_proposal_initial=jnp.array([-jnp.inf, -jnp.inf, 0.0]),
        ),
        "what is told of idle rows": ending._replace(idle=jnp.asarray(jnp.nan)),
    }


TABLES = tables()
STACKED = jax.tree.map(lambda *leaves: jnp.stack(leaves), *TABLES.values())


@pytest.fixture(scope="module", params=SEARCHES)
def name(request):
    return request.param


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(1, marks=pytest.mark.slow),
        3,
        pytest.param(8, marks=pytest.mark.slow),
    ],
)
def runs(request, name):
    """Of one search with N particles: by table, a batch of runs."""

    def run(key, params):
        return tsi.run(SEARCHES[name](), SHAPE, key, request.param, params)

    over_tables = jax.vmap(jax.vmap(run, (0, None)), (None, 0))
    batch = jax.jit(over_tables)(KEYS, STACKED)
    return {
        table: jax.tree.map(lambda leaf, n=n: np.asarray(leaf[n]), batch)
        for n, table in enumerate(TABLES)
    }


@pytest.mark.long
def test_results_are_always_defined(runs):
    for table, run in runs.items():
        state, weights = run.state, np.exp(run.state.log_weights)
        for numbers in (weights, state.log_potentials):
            assert not np.isnan(numbers).any(), table
        # What a search ranks by has no effective size.
        assert np.isnan(run.infos.ess[np.arange(len(KEYS)), 0]).all()
        np.testing.assert_allclose(weights.mean(-1), 1.0, rtol=1e-5)
        np.testing.assert_array_equal(state.log_evidence, 0.0)
        np.testing.assert_array_equal(state.finished, run.particles.finished)
        # All or none of the weight is on finished solutions.
        on_finished = (weights * state.finished).mean(-1)
        some = state.finished.any(-1)
        np.testing.assert_allclose(on_finished, some.astype(float), rtol=1e-5)


def test_nothing_of_reward_zero_is_handed_over_beside_something_better(runs):
    for run in runs.values():
        alive = run.state.log_potentials > -np.inf
        weighted = run.state.log_weights > -np.inf
        better = (alive & run.state.finished).any(-1, keepdims=True)
        assert (alive | ~weighted | ~better).all()


def test_nan_and_infinite_potentials_are_counted_alike(runs):
    invalid = {table: run.infos.num_invalid.sum(-1) for table, run in runs.items()}
    assert (invalid["all not a number"] > 0).all()
    np.testing.assert_array_equal(
        invalid["all infinite, not a number"], invalid["all not a number"]
    )
    assert invalid["some not a number"].sum() > 0
    for table in TABLES:
        if "not a number" not in table:
            np.testing.assert_array_equal(invalid[table], 0, err_msg=table)


def test_what_finished_at_once_ends_the_run(runs, name):
    run = runs["finished at once"]
    size = run.state.members.shape[-1]
    # Only AB-MCTS, one child a turn, can give the root ever more children.
    turns = size if name == "ab_mcts" else 1
    np.testing.assert_array_equal(run.num_steps, turns)
    assert run.state.finished.any(-1).all()


@pytest.mark.long
@pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)
def test_a_thousand_keys_and_a_limit_below_the_target_s_own(make):
    explorer, limit, size = make(), 3, 4
    plan = explorer.plan(size, limit)
    run = jax.jit(
        jax.vmap(lambda key: tsi.run(explorer, SHAPE, key, size, max_steps=limit))
    )(jax.random.split(jax.random.key(2), 1000))
    assert (run.num_steps <= plan.turns).all()
    assert np.isfinite(run.state.log_potentials).all()
    assert (run.particles.length <= limit).all()
    np.testing.assert_array_equal(run.state.finished, run.particles.length == limit)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_the_selected_reward_grows_with_the_budget(name):
    target, rewards = peaked(), []
    # Simulations of one expansion explore wide, and need more to come to an end.
    for size in (16, 64) if name == "uct" else (4, 16):
        run = jax.jit(
            jax.vmap(lambda key, n=size: tsi.run(SEARCHES[name](), target, key, n))
        )(jax.random.split(jax.random.key(3), 500))
        chosen = run.state.finished & (run.state.log_weights > -jnp.inf)
        reward = jnp.where(chosen, jax.nn.sigmoid(run.state.log_potentials), 0.0)
        best = np.asarray(reward.max(-1))
        rewards.append((best.mean(), best.std() / np.sqrt(best.size)))
    (few, few_error), (many, many_error) = rewards
    assert many - few > 4 * np.hypot(few_error, many_error)


@pytest.mark.parametrize(
    "settings",
    [
        lambda: samplers.mcts(0),
        lambda: samplers.ab_mcts(batch=0),
        lambda: samplers.lookahead_search(4, -1),
        lambda: samplers.lookahead_search(4).plan(6, 4),
        lambda: samplers.step_beam_search(4).plan(6, 4),
        lambda: samplers.step_beam_search(0).plan(6, 4),
        lambda: thompson.gaussian(kappa=0.0),
        lambda: thompson.beta(b=0.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigurationError):
        settings()


def test_an_unknown_posterior_is_refused_by_name():
    with pytest.raises(UnknownNameError, match=r"cauchy.*beta, gaussian"):
        samplers.ab_mcts("cauchy")


def test_searches_claim_no_target():
    for make in SEARCHES.values():
        explorer = make()
        assert isinstance(explorer, Explorer)
        assert explorer.path_log_weight is None
        assert explorer.needs == ()
