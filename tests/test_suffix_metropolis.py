"""Chains that redraw the end of a solution: exact forms, and what published ones miss.

A chain's start is weighted, so an exact kernel keeps the evidence statement after any
number of moves; a kernel with the wrong stationary law drifts away from it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from long_runs import jit_optimised

import tsi
from tsi import samplers
from tsi.bench.conformance import target_checks
from tsi.bench.robustness import Programs
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.explore import explore, start, turn
from tsi.samplers.parts.potentials import latest, product, telescoping, uniform
from tsi.samplers.suffix_metropolis import Blocks
from tsi.targets.examples import peaked, unequal_lengths

TARGETS = {"peaked": peaked, "unequal lengths": unequal_lengths}


def failures(explorer, num_particles=8, num_runs=20_000):
    programs = Programs(explorer, num_particles, num_runs)
    checks = []
    for index, (name, make) in enumerate(TARGETS.items()):
        run = programs(make(), jax.random.key(40 + index))
        checks += target_checks(name, make(), explorer, run)
    return [check for check in checks if check.passed is False]


@pytest.mark.long
@pytest.mark.parametrize(
    "explorer",
    [
        samplers.quest(0.5),
        pytest.param(samplers.power_sampling(2.0), marks=pytest.mark.slow),
        samplers.power_sampling(0.5, num_chains=4),
        pytest.param(
            samplers.suffix_metropolis(product(), power=1.5, num_chains=2),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["quest", "power", "flat power, four chains", "power and product"],
)
def test_exact_chains_keep_their_target_after_every_number_of_moves(explorer):
    assert failures(explorer) == []


def as_exact(explorer, potential):
    """The same chain, claiming what it would target with the ratio of lengths."""
    exact = samplers.suffix_metropolis(potential, power=explorer.power)

    def tell(key, state, reply):
        after, info = explorer.tell(key, state, reply)
        # The weighted start, which only exact chains report.
        start, _ = exact.tell(key, state, reply)
        evidence = jnp.where(state.growing, start.log_evidence, state.log_evidence)
        return after._replace(log_evidence=evidence), info

    return explorer._replace(tell=tell, path_log_weight=potential.path_log_weight)


@pytest.mark.slow
def test_without_the_ratio_of_lengths_a_chain_favours_short_solutions():
    dropped = samplers.suffix_metropolis(uniform(), power=2.0, lengths=False)
    assert dropped.path_log_weight is None
    broken = failures(as_exact(dropped, uniform()))
    # All paths of the other table have one length, so nothing is dropped there.
    assert {check.promise for check in broken} == {"posterior, unequal lengths"}
    kept = samplers.suffix_metropolis(uniform(), power=2.0)
    assert failures(as_exact(kept, uniform())) == []


def stationary(explorer, target, num_runs=4_000, num_particles=48):
    """The law of the last state, by path code."""
    many = jit_optimised(
        jax.vmap(lambda key: tsi.run(explorer, target, key, num_particles))
    )
    runs = many(jax.random.split(jax.random.key(0), num_runs))
    return np.asarray(runs.particles.symbols)[:, -1]


def total_variation(symbols, target, truth):
    codes = target.path_codes(truth.symbols)
    found = target.path_codes(symbols)
    share = np.array([(found == code).mean() for code in codes])
    return 0.5 * np.abs(share - truth.posterior).sum()


@pytest.mark.slow
def test_released_blocks_end_elsewhere_than_the_power_target_and_printed_ones_there():
    target = unequal_lengths()
    truth = target.truth(uniform().path_log_weight, power=3.0)
    settings = {"block_steps": 2}
    off, near, exact = (
        total_variation(stationary(explorer, target), target, truth)
        for explorer in (
            samplers.power_sampling(3.0, variant="released", **settings),
            samplers.power_sampling(3.0, variant="printed", **settings),
            samplers.power_sampling(3.0),
        )
    )
    assert exact < 0.03
    assert near < 0.03
    assert off > 0.06


def test_printed_blocks_spend_as_many_moves_as_the_exact_form():
    printed = samplers.power_sampling(variant="printed", block_steps=2)
    plan = printed.plan(13, 6)
    # Three blocks share twelve moves; only the present states are kept.
    assert plan.stored == 2
    run = tsi.run(printed, peaked(), jax.random.key(0), 13)
    assert int(run.state.iteration) == 2 * int(run.state.moves) == 12
    assert bool(run.state.done)


def test_a_move_extends_from_its_cut_only():
    explorer = samplers.quest(0.5)
    run = jax.jit(lambda key: tsi.run(explorer, peaked(), key, 40))(jax.random.key(1))
    # Four steps for the first rollout; then cuts at 0 to 3 leave 2.5 on average.
    turns = int(run.num_steps)
    assert turns < 4 + 39 * 3.2
    assert turns > 4 + 39 * 1.8


@pytest.mark.parametrize(
    "settings",
    [{"blocks": Blocks(2)}, {"blocks": Blocks(2, released=True)}, {"endless": True}],
    ids=["printed", "released", "endless"],
)
def test_chains_that_share_a_start_keep_their_paths_apart(settings):
    chain = samplers.suffix_metropolis(product(), num_chains=4, **settings)
    target = unequal_lengths()

    @jax.jit
    @jax.vmap
    def explored(key):
        if not chain.endless:
            return explore(chain, target, key, 16)[0]
        key_init, key_steps = jax.random.split(key)
        first = start(chain, target, key_init, 16)
        return jax.lax.fori_loop(
            0, 30, lambda _, e: turn(chain, target, key_steps, e)[0], first
        )

    last = explored(jax.random.split(jax.random.key(0), 200))
    state = last.state
    # What is stored where a chain says its path is has the length of its record.
    lengths = np.take_along_axis(
        np.asarray(last.stored.length), np.asarray(state.slots), axis=1
    )
    np.testing.assert_array_equal(lengths, state.current.length)
    last_step = np.maximum(lengths - 1, 0)[..., None]
    symbols = np.take_along_axis(
        np.asarray(last.stored.symbols), np.asarray(state.slots)[..., None], axis=1
    )
    ends = np.take_along_axis(symbols, last_step, axis=2)[..., 0]
    noted = np.take_along_axis(
        np.asarray(state.current.log_potentials), last_step, axis=2
    )[..., 0]
    expected = target.log_potentials[last_step[..., 0], ends]
    np.testing.assert_allclose(noted, expected, rtol=1e-5)


def test_one_rollout_makes_no_move():
    for chain in (samplers.quest(0.5), samplers.power_sampling(variant="printed")):
        run = tsi.run(chain, peaked(), jax.random.key(0), 1)
        assert int(run.state.iteration) == 0
        assert bool(run.state.done)
        assert bool(run.state.finished.all())


def test_a_start_of_density_zero_accepts_every_move_and_has_no_evidence():
    target = peaked()
    target.log_potentials[3] = -np.inf
    chain = samplers.suffix_metropolis(telescoping())
    run = tsi.run(chain, target, jax.random.key(0), 8)
    assert float(run.state.log_evidence) == -np.inf
    assert int(run.state.accepted) == 7
    assert not np.isnan(np.asarray(run.state.log_weights)).any()


def test_rewards_that_are_no_number_have_no_weight_and_are_counted():
    target = peaked()
    target.log_potentials[1] = np.nan
    run = tsi.run(samplers.quest(0.5), target, jax.random.key(0), 8)
    assert float(run.state.log_evidence) == -np.inf
    # Counted where it is drawn: in the first rollout, and by moves that cut before it.
    assert int(run.infos.num_invalid.sum()) >= 2


def test_an_infinite_log_potential_is_no_weight_in_a_chain_either():
    runs = {}
    for value in (np.nan, np.inf):
        target = peaked()
        target.log_potentials[1] = value
        runs[value] = tsi.run(samplers.quest(0.5), target, jax.random.key(0), 8)
    infinite, not_a_number = runs[np.inf], runs[np.nan]
    assert float(infinite.state.log_evidence) == -np.inf
    np.testing.assert_array_equal(
        infinite.infos.num_invalid, not_a_number.infos.num_invalid
    )


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigurationError, match="multiple of"):
        samplers.quest(0.5, num_chains=3).plan(8, 4)
    with pytest.raises(ConfigurationError, match="beta"):
        samplers.quest(0.0)
    with pytest.raises(ConfigurationError, match="power=-1"):
        samplers.power_sampling(-1.0)
    with pytest.raises(ConfigurationError, match="path weight"):
        samplers.suffix_metropolis(latest())
    with pytest.raises(UnknownNameError, match="variant"):
        samplers.power_sampling(variant="magic")
