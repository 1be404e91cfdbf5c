"""A language model's step as a distribution: draws and densities, by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import tiny_language
from numpyro.infer.util import log_density
from numpyro_programs import SMC, likelihood_weighting, many, z_score
from scipy import stats

import tsi
from tsi.numpyro import TokenStep, append_step, program_target

KEY = jax.random.key(0)
TABLE = jax.nn.log_softmax(jax.random.normal(jax.random.key(3), (4, 3)) * 1.5)
"""Log-probabilities of three tokens by how many ones there are so far."""
ENDS = jnp.array([True, False, False])


def by_ones(table, tokens, length):
    written = jnp.arange(tokens.shape[0]) < length
    return table[jnp.sum(written & (tokens == 1))]


def step_of(prefix=(), room=6, max_tokens=3):
    # What is behind the prefix must not matter, so it is something that would.
    tokens = jnp.array([*prefix, *[1] * (room - len(prefix))], jnp.int32)
    length = len(prefix)
    return TokenStep(by_ones, TABLE, tokens, length, ENDS, max_tokens=max_tokens)


def everything(max_tokens=3):
    return jnp.array(list(itertools.product(range(-1, 4), repeat=max_tokens)))


def probability(prefix, value):
    """From the definition: p of a step, zero for what is none."""
    path, total = list(prefix), 1.0
    tokens = [t for t in value if t != -1]
    whole = list(value) == tokens + [-1] * (len(value) - len(tokens))
    cut = len(tokens) == len(value) or len(prefix) + len(tokens) == 6
    ended = bool(tokens) and tokens[-1] == 0
    if len(prefix) + len(tokens) > 6 or 0 in tokens[:-1] or 3 in tokens:
        return 0.0
    if not whole or not (ended or cut):
        return 0.0
    for token in tokens:
        total *= float(np.exp(TABLE[path.count(1), token]))
        path.append(token)
    return total


@pytest.mark.parametrize("prefix", [(), (1, 2), (1, 2, 2, 1), (2, 2, 2, 2, 2, 1)])
def test_densities_are_the_products_and_sum_to_one(prefix):
    p = np.exp(step_of(prefix).log_prob(everything()))
    expected = [probability(prefix, value) for value in np.asarray(everything())]
    np.testing.assert_allclose(p, expected, rtol=1e-5)
    assert p.sum() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("prefix", [(), (1, 2, 2, 1)])
def test_draws_have_their_densities(prefix):
    step = step_of(prefix)
    drawn = np.asarray(jax.jit(lambda key: step.sample(key, (20_000,)))(KEY))
    values = np.asarray(everything())
    expected = np.exp(np.float64(step.log_prob(jnp.asarray(values))))
    places = 5 ** np.arange(3)
    codes = (values + 1) @ places
    counts = np.bincount((drawn + 1) @ places, minlength=codes.max() + 1)[codes]
    assert counts[expected == 0].sum() == 0
    # Steps that are too rare for a chi-square test count with the likeliest.
    expected = expected / expected.sum() * len(drawn)
    cell = np.where(expected > 20, np.arange(len(expected)), np.argmax(expected))
    observed, expected = (np.bincount(cell, weights=x) for x in (counts, expected))
    met = expected > 0
    assert met.sum() > 5
    assert stats.chisquare(observed[met], expected[met]).pvalue > 1e-3


def test_steps_are_appended_behind_the_prefix():
    tokens = jnp.zeros(5, jnp.int32)
    tokens, length = append_step(tokens, 0, jnp.array([2, 1, -1]))
    tokens, length = append_step(tokens, length, jnp.array([1, 0, -1]))
    np.testing.assert_array_equal(tokens, [2, 1, 1, 0, 0])
    assert int(length) == 4


def test_it_is_a_pytree_and_validates():
    step = step_of((1,))
    copy = jax.tree.unflatten(*reversed(jax.tree.flatten(step)))
    value = jnp.array([2, 0, -1])
    np.testing.assert_array_equal(step.log_prob(value), copy.log_prob(value))
    assert bool(step.support(value))
    assert not bool(step.support(value + 3))
    assert step.event_shape == (3,)
    assert step.batch_shape == ()
    assert step.sample(KEY, (2, 4)).shape == (2, 4, 3)


def write(t, carry, params):
    """One step of at most two tokens, weighed by its number of ones."""
    tokens, length = carry
    step = numpyro.sample(
        "step", TokenStep(by_ones, params, tokens, length, ENDS, max_tokens=2)
    )
    numpyro.factor("reward", 0.5 * jnp.sum(step == 1) - 0.2 * jnp.sum(step == 2))
    return append_step(tokens, length, step)


@pytest.mark.long
def test_a_program_over_a_language_models_steps_has_the_enumerated_evidence():
    target = program_target(
        lambda params: (jnp.zeros(4, jnp.int32), jnp.zeros((), jnp.int32)),
        write,
        max_steps=2,
        end=lambda t, carry, params: carry[1] >= 4,
    )
    two = [v for v in itertools.product(range(-1, 3), repeat=2) if v[0] >= 0]

    def weight(value):
        return np.exp(0.5 * value.count(1) - 0.2 * value.count(2))

    evidence = 0.0
    for first, second in itertools.product(two, two):
        prefix = [token for token in first if token >= 0]
        p = probability([], first) * probability(prefix, second)
        evidence += p * weight(first) * weight(second)
    _, _, log_evidence = many(target, SMC, params=TABLE)
    assert abs(z_score(log_evidence, evidence)) < 4


@pytest.mark.long
def test_the_whole_model_scores_steps_that_numpyro_has_stacked():
    target = program_target(
        lambda params: (jnp.zeros(4, jnp.int32), jnp.zeros((), jnp.int32)),
        write,
        max_steps=3,
        end=lambda t, carry, params: carry[1] >= 2,
    )
    particles = tsi.run(likelihood_weighting(), target, KEY, 64, TABLE).particles
    assert len(set(np.asarray(particles.length))) > 1
    sites = target.sites(particles, TABLE)
    found = jax.vmap(lambda v: log_density(target.model, (TABLE,), {}, v)[0])(sites)
    taken = np.arange(3) < np.asarray(particles.length)[:, None]
    log_g = np.where(taken, particles.history.log_potential, 0.0).sum(1)
    log_p = np.asarray(target.log_prob(particles))
    np.testing.assert_allclose(found, log_p + log_g, rtol=1e-4)


def llama_next(policy, tokens, length):
    return jax.nn.log_softmax(policy(tokens[None])[0, length - 1])


@pytest.mark.long
def test_a_flax_llama_is_such_a_model():
    policy, _ = tiny_language.models(sharpness=1.5)
    params = tiny_language.params("ab")._replace(policy=policy)
    ends = jnp.zeros(20, bool).at[jnp.array([0, 3])].set(True)
    prompt = jnp.zeros(12, jnp.int32).at[:2].set(params.prompts.tokens[0, :2])

    def step(t, carry, policy):
        tokens, length = carry
        drawn = numpyro.sample(
            "step", TokenStep(llama_next, policy, tokens, length, ends, max_tokens=3)
        )
        numpyro.factor("reward", 0.3 * jnp.sum(drawn == 5))
        return append_step(tokens, length, drawn)

    target = program_target(lambda _: (prompt, jnp.int32(2)), step, max_steps=3)
    run = jax.jit(lambda key, policy: tsi.run(SMC, target, key, 6, policy))(
        KEY, params.policy
    )
    tokens, lengths = run.particles.carry
    written = [
        ("ab", list(np.asarray(row[2:length])))
        for row, length in zip(tokens, lengths, strict=True)
    ]
    log_p, _ = tiny_language.uncached(params, written)
    np.testing.assert_allclose(target.log_prob(run.particles), log_p, rtol=1e-4)
    assert len({tuple(row) for _, row in written}) > 1
