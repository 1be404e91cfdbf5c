"""Samplers, explorers and what they are made of print as the call that made them."""

import functools

import jax.numpy as jnp
import pytest

import tsi
from tsi import samplers
from tsi.picklable import describe, picklable


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (samplers.smc(), "smc()"),
        (
            samplers.smc(
                potential=samplers.telescoping("reward"),
                resampling=samplers.multinomial,
                schedule=samplers.ess_below(0.3),
            ),
            "smc(potential=telescoping('reward'), resampling=multinomial, "
            "schedule=ess_below(0.3))",
        ),
        (samplers.beam_search(3), "beam_search(3)"),
        (samplers.mcts(bonus=samplers.uct(1.5)), "mcts(bonus=uct(1.5))"),
        (
            samplers.particle_gibbs(num_sweeps=2, endless=True),
            "particle_gibbs(num_sweeps=2, endless=True)",
        ),
        (
            samplers.smc(resampling=samplers.top_k_replicate(2)),
            "smc(resampling=Deterministic(top_k_replicate))",
        ),
        (
            samplers.by_priority(samplers.systematic),
            "by_priority(systematic)",
        ),
    ],
)
def test_a_sampler_prints_as_the_call_that_made_it(value, line):
    assert repr(value) == line


def test_changed_fields_are_printed():
    sampler = samplers.particle_filter()._replace(select="vote")
    assert repr(sampler) == "particle_filter()._replace(select='vote')"


def test_without_a_recipe_the_fields_are_printed():
    init, ask, tell = samplers.smc()[:3]
    assert repr(tsi.Sampler(init, ask, tell, prunes=True)) == (
        "Sampler(init=init, ask=ask, tell=tell, prunes=True)"
    )


@picklable
def sampler_of(values):
    return samplers.smc()


def test_arrays_and_long_arguments_stay_on_one_line():
    assert repr(sampler_of(jnp.zeros((2, 300)))) == "sampler_of(float32[2, 300])"
    assert "\n" not in describe(sampler_of(functools.partial(max, "a\nb")))
    assert "0x" not in repr(sampler_of(lambda t: t))
