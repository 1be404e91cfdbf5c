"""Every search asks for what its textbook asks for, turn by turn.

The textbooks (tests/search_textbook.py) are plain Python fed with a run's replies.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from search_textbook import (
    puct_score,
    recorder,
    recording,
    textbook_ab_mcts,
    textbook_lookahead,
    textbook_mcts,
    textbook_step_beam,
    uct_score,
)

import tsi
from tsi import samplers
from tsi.explorer import Reply
from tsi.samplers.parts.thompson import Observations, beta, gaussian
from tsi.targets.examples import EXAMPLES, smooth
from tsi.targets.tabular import TabularTarget


def mostly_dead():
    """One symbol of three is possible, at every step but the last."""
    plain = smooth()
    scores = plain.log_potentials.copy()
    scores[:3, :2] = -np.inf
    return TabularTarget(plain.initial, plain.transition, scores)


TABLES = [*(make() for make in EXAMPLES.values()), mostly_dead()]
# All examples have one shape, so one program serves them with their own tables.
SHAPE = TABLES[0]
KEYS = jax.random.split(jax.random.key(7), 12)


def recordings(explorer, size):
    """(key, last state, recorded turns) of every table and key."""
    compiled = recorder(explorer, SHAPE, size)
    for table in TABLES:
        runs = compiled(KEYS, table.params)
        for index, key in enumerate(KEYS):
            yield key, *recording(runs, index)


def assert_asked(textbook, recorded):
    """All turns as the textbook has them; what it returns at its end."""
    asked = iter(recorded)
    while True:
        try:
            expected = next(textbook)
        except StopIteration as end:
            assert next(asked, None) is None
            return end.value
        assert next(asked)[0] == expected


@pytest.mark.long
@pytest.mark.parametrize("to_end", [True, False])
@pytest.mark.parametrize("rule", ["puct", "uct"])
def test_mcts_is_the_textbook(rule, to_end):
    bonus, score = {
        "puct": (None, puct_score),
        "uct": (samplers.uct(), uct_score),
    }[rule]
    explorer = samplers.mcts(3, bonus=bonus, to_end=to_end)
    revisits = 0
    for _, state, recorded in recordings(explorer, 10):
        root = assert_asked(textbook_mcts(recorded, 3, score, to_end), recorded)
        tree, total = state.tree, sum(len(rows) for rows, _ in recorded)
        assert total <= 10 * SHAPE.max_steps
        assert int(tree.size) == 1 + total
        revisits += sum(not rows for rows, _ in recorded)
        for node in [root, *root.below()]:
            below = sum(len(child.found) for child in node.children)
            own = len(node.found) - below
            assert int(tree.visits[node.slot]) == len(node.found)
            np.testing.assert_allclose(
                tree.total[node.slot], sum(node.found), rtol=1e-5
            )
            if node.children and node is not root:
                assert own == (0 if to_end else 1)
    # Finished leaves are met again, and cost nothing but a turn.
    assert revisits > 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "batch", "to_end"),
    [("gaussian", 1, True), ("gaussian", 3, False), ("beta", 2, True)],
)
def test_ab_mcts_is_the_textbook(name, batch, to_end):
    posterior = {"gaussian": gaussian, "beta": beta}[name]()

    @jax.jit
    def draw(key, seen):
        number, total, squares = jnp.asarray(seen, jnp.float32)
        return posterior(key, Observations(number.astype(jnp.int32), total, squares))

    explorer = samplers.ab_mcts(name, batch=batch, to_end=to_end)
    stored = explorer.plan(6, SHAPE.max_steps).stored
    deeper = 0
    for key, _, recorded in recordings(explorer, 6):
        textbook = textbook_ab_mcts(
            recorded, jax.random.split(key)[1], batch, to_end, draw, stored
        )
        assert_asked(textbook, recorded)
        steps = [row for rows, _ in recorded for row in rows]
        assert len(steps) <= 6 * SHAPE.max_steps
        with_children = [parent for parent, _ in steps if parent > 0]
        deeper += len(with_children) - len(set(with_children))
    # Walks did branch below the root.
    assert deeper > 0


@pytest.mark.long
@pytest.mark.parametrize("k", [0, 1, 2])
def test_lookahead_search_is_the_textbook(k):
    for _, _, recorded in recordings(samplers.lookahead_search(3, k), 6):
        assert_asked(textbook_lookahead(recorded, 6, 3, k), recorded)


@pytest.mark.parametrize("variant", ["full_width", "released"])
def test_step_beam_is_the_textbook(variant):
    for _, state, recorded in recordings(
        samplers.step_beam_search(3, variant=variant), 6
    ):
        textbook = textbook_step_beam(recorded, 6, 3, variant == "released")
        aside = assert_asked(textbook, recorded)
        assert set(np.flatnonzero(state.collected)) == set(aside)


def test_bonuses_are_the_published_formulas():
    parent, visits = jnp.array(30), jnp.array([0, 1, 7])
    c = np.log((30 + 19652 + 1) / 19652) + 1.25
    np.testing.assert_allclose(
        samplers.puct()(parent, visits, jnp.array(3)),
        c / 3 * np.sqrt(30) / np.array([1, 2, 8]),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        samplers.uct()(parent, visits, jnp.array(3)),
        [np.inf, np.sqrt(2 * np.log(30)), np.sqrt(2 * np.log(30) / 7)],
        rtol=1e-5,
    )


def test_the_gaussian_posterior_is_a_scaled_student_t():
    rewards = np.array([0.2, 0.9, 0.7])
    mean, kappa, nu, tau_squared = 0.3, 2.0, 1.5, 0.2
    n, average = 3, rewards.mean()
    spread = n * rewards.var() + n * kappa * (mean - average) ** 2 / (kappa + n)
    variance = (nu * tau_squared + spread) / (nu + n)
    expected = stats.t(
        nu + n,
        loc=(kappa * mean + n * average) / (kappa + n),
        scale=np.sqrt(variance / (kappa + n)),
    )
    drawn = draws_of(gaussian(mean, kappa, nu, tau_squared), rewards)
    assert stats.kstest(drawn, expected.cdf).pvalue > 1e-3


def test_the_beta_posterior_counts_fractions_of_a_success():
    rewards = np.array([0.2, 0.9, 0.7])
    drawn = draws_of(beta(0.5, 1.0), rewards)
    assert stats.kstest(drawn, stats.beta(0.5 + 1.8, 1.0 + 1.2).cdf).pvalue > 1e-3


def draws_of(posterior, rewards):
    seen = Observations(
        jnp.full(20_000, len(rewards)),
        jnp.full(20_000, rewards.sum(), jnp.float32),
        jnp.full(20_000, (rewards**2).sum(), jnp.float32),
    )
    return np.asarray(posterior(jax.random.key(3), seen), np.float64)


def test_lookahead_of_zero_steps_keeps_what_beam_keeps_of_told_numbers():
    size, steps = 8, 12
    rng = np.random.default_rng(0)
    search, plain = samplers.lookahead_search(4, 0), samplers.beam_search(4)
    key = jax.random.key(0)
    ask, ask_plain = jax.jit(search.ask), jax.jit(plain.ask)
    tell, tell_plain = jax.jit(search.tell), jax.jit(plain.tell)
    for case in range(20):
        state, twin = search.init(key, size, steps), plain.init(key, size)
        for _ in range(steps):
            numbers = rng.normal(size=size).round(1).astype(np.float32)
            numbers[rng.random(size) < 0.15 * (case % 7)] = -np.inf
            numbers[rng.random(size) < 0.1] = np.nan
            ended = rng.random(size) < 0.1
            state, request = ask(key, state)
            twin, ancestors = ask_plain(key, twin)
            np.testing.assert_array_equal(request.parents, ancestors)
            np.testing.assert_array_equal(~request.extend, twin.finished)
            zeros = jnp.zeros(size)
            ended = jnp.asarray(ended)
            state, _ = tell(
                key, state, Reply(jnp.asarray(numbers), zeros, zeros, ended)
            )
            twin, _ = tell_plain(key, twin, jnp.asarray(numbers), zeros, ended)
            np.testing.assert_array_equal(state.finished, twin.finished)
            np.testing.assert_array_equal(state.log_potentials, twin.log_potentials)


def runs_on(sampler, size, *, tables=TABLES):
    compiled = jax.jit(
        jax.vmap(lambda key, p: tsi.run(sampler, SHAPE, key, size, p), (0, None))
    )
    return [compiled(KEYS, table.params) for table in tables]


@pytest.mark.long
def test_lookahead_of_zero_steps_is_beam_search():
    pairs = zip(
        runs_on(samplers.lookahead_search(4, 0), 8),
        runs_on(samplers.beam_search(4), 8),
        strict=True,
    )
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours.particles.symbols, theirs.particles.symbols)
        np.testing.assert_array_equal(ours.num_steps, theirs.num_steps)


# All paths as long as each other, and none of reward zero.
EQUAL_LENGTHS = TABLES[:2]


@pytest.mark.long
@pytest.mark.parametrize(
    ("search", "limit", "size"),
    [
        (samplers.step_beam_search(4), samplers.beam_search(4), 8),
        (samplers.mcts(6), samplers.beam_search(6), 6),
        (samplers.mcts(6, bonus=samplers.uct()), samplers.beam_search(6), 6),
        (
            samplers.ab_mcts(
                # Draws of GEN are one, all others zero.
                lambda _, seen: jnp.zeros(seen.number.shape).at[0].set(1.0),
                batch=6,
            ),
            samplers.best_of_n(),
            6,
        ),
    ],
    ids=["step beam", "puct", "uct", "ab-mcts"],
)
def test_a_search_in_its_limit_is_a_particle_system(search, limit, size):
    pairs = zip(
        runs_on(search, size, tables=EQUAL_LENGTHS),
        runs_on(limit, size, tables=EQUAL_LENGTHS),
        strict=True,
    )
    for ours, theirs in pairs:
        for run, twin in zip(
            np.asarray(ours.particles.symbols),
            np.asarray(theirs.particles.symbols),
            strict=True,
        ):
            # The particles of `limit`, best first instead of in their order.
            assert sorted(run.tolist()) == sorted(twin[:size].tolist())


@pytest.mark.long
@pytest.mark.parametrize(
    "search",
    [
        samplers.mcts(),
        samplers.mcts(to_end=False),
        samplers.ab_mcts(),
        samplers.lookahead_search(k=0),
        samplers.step_beam_search(),
    ],
)
def test_one_particle_is_one_rollout(search):
    ours = runs_on(search, 1, tables=EQUAL_LENGTHS[:1])[0]
    rollout = runs_on(samplers.self_consistency(), 1, tables=EQUAL_LENGTHS[:1])[0]
    same = ours.particles.symbols == rollout.particles.symbols
    assert np.all(same)


def test_with_large_exploration_the_tree_fills_level_by_level():
    explorer = samplers.mcts(2, bonus=samplers.puct(c_init=1e6), to_end=False)
    runs = recorder(explorer, SHAPE, 8)(KEYS, smooth().params)
    for index in range(len(KEYS)):
        _, recorded = recording(runs, index)
        depth, levels = {0: 0}, []
        for rows, _ in recorded:
            for parent, slot in rows:
                depth[slot] = depth[parent] + 1
                levels.append(depth[slot])
        assert levels == sorted(levels)
        assert max(levels) == SHAPE.max_steps
