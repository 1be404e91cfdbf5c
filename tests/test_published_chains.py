"""Published chains, turn by turn: their code and their print, in numpy."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_weights import SHAPE, TARGETS, multinomial, odds_weights, softmax_weights
from search_textbook import spy
from test_degenerate import sigmoid

import tsi
from tsi import samplers
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.explore import explore
from tsi.step_keys import step_keys
from tsi.targets.examples import unequal_lengths


class Turns(NamedTuple):
    """One recorded run of an explorer: what was asked and told, turn by turn."""

    state: object
    asked: list
    told: list
    keys: list


def recorded(explorer, size, seeds=6):
    spied = spy(explorer)
    run = jax.jit(jax.vmap(lambda k, p: explore(spied, SHAPE, k, size, p), (0, None)))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    for target in TARGETS:
        end, turns = jax.tree.map(np.asarray, run(keys, target.params))
        for i in range(seeds):
            steps = range(int(end.turn[i]))
            request, reply = jax.tree.map(lambda x, i=i: x[i], turns)
            at = lambda tree, t: jax.tree.map(lambda x: x[t], tree)  # noqa: E731
            _, key_steps = jax.random.split(keys[i])
            yield Turns(
                jax.tree.map(lambda x, i=i: x[i], end.state.inner),
                [at(request, t) for t in steps],
                [at(reply, t) for t in steps],
                [step_keys(key_steps, t) for t in steps],
            )


class Path:
    """A solution on its way, as the code's `Particle` is."""

    def __init__(self, rewards=(), active=True):
        self.rewards, self.active = list(rewards), active

    def copy(self, steps):
        """Cut to so many steps, and on its way again if that cut something off."""
        whole = steps >= len(self.rewards)
        return Path(self.rewards[:steps], self.active if whole else True)


def textbook_particle_gibbs(turns, size, sweeps, weigh, ahead):
    """The code's sweeps. The reference is particle 0 here and the last one there."""
    replies = iter(zip(turns.asked, turns.told, turns.keys, strict=True))
    reference, descents = None, 0
    for _ in range(sweeps):
        first = 0 if reference is None else 1
        fresh = [Path() for _ in range(size - first)]
        step = 0
        while any(path.active for path in fresh):
            request, reply, keys = next(replies)
            if step > 0:
                everyone = ([reference] if first else []) + fresh
                last = [path.rewards[-1] for path in fresh]
                if first:
                    seen = step if ahead else step - 1
                    own = reference.rewards
                    last.insert(0, own[min(seen, len(own) - 1)])
                key = jax.random.split(keys.ask)[1]
                drawn = multinomial(key, weigh(last), size)[first:]
                descents += int(np.sum(drawn == 0)) * first
                fresh = [everyone[k].copy(step) for k in drawn]
            for row, path in enumerate(fresh, start=first):
                assert bool(request.extend[row]) == path.active
                if path.active:
                    path.rewards.append(float(reply.log_potentials[row]))
                    path.active = not bool(reply.finished[row])
            step += 1
        everyone = ([reference] if first else []) + fresh
        chances = weigh([path.rewards[-1] for path in everyone])
        reference = everyone[multinomial(keys.tell, chances, 1)[0]]
    assert next(replies, None) is None
    return everyone, chances, reference, descents


@pytest.mark.long
@pytest.mark.parametrize(
    ("variant", "weigh"), [("released", odds_weights), ("printed", softmax_weights)]
)
def test_particle_gibbs_sweeps_are_those_of_the_code_and_of_the_print(variant, weigh):
    explorer = samplers.particle_gibbs(variant=variant, num_sweeps=4)
    assert explorer.path_log_weight is None
    assert explorer.select == "argmax"
    descents = shorter = 0
    for turns in recorded(explorer, 16):
        everyone, chances, reference, seen = textbook_particle_gibbs(
            turns, 4, 4, weigh, ahead=variant == "released"
        )
        descents += seen
        state = turns.state
        last = [path.rewards[-1] for path in everyone]
        np.testing.assert_allclose(state.log_potentials, last, rtol=1e-5)
        np.testing.assert_allclose(np.exp(state.log_weights) / 4, chances, rtol=1e-4)
        assert state.finished.all()
        assert int(state.reference.length) == len(reference.rewards)
        kept = state.reference.log_potentials[: len(reference.rewards)]
        np.testing.assert_allclose(kept, reference.rewards, rtol=1e-5)
        shorter += len(turns.asked) < 4 * SHAPE.max_steps
        assert len(state.members) == 4
    # References were drawn by others, and sweeps ended before the step limit.
    assert descents > 10
    assert shorter > 0


def test_what_a_published_sweep_hands_over_is_what_is_stored():
    explorer = samplers.particle_gibbs(variant="released", num_sweeps=3)
    target = unequal_lengths()
    runs = jax.jit(jax.vmap(lambda key: tsi.run(explorer, target, key, 12)))(
        jax.random.split(jax.random.key(0), 20)
    )
    lengths = np.asarray(runs.particles.length)
    last = np.maximum(lengths - 1, 0)[..., None]
    symbols = np.take_along_axis(np.asarray(runs.particles.symbols), last, -1)[..., 0]
    known = target.log_potentials[last[..., 0], symbols]
    np.testing.assert_allclose(runs.state.log_potentials, known, rtol=1e-5)


def test_printed_tempering_draws_and_swaps_by_heated_rewards():
    size, chains, ladder = 3, 2, np.array([1.0, 4.0])
    explorer = samplers.parallel_tempering(
        variant="printed", temperatures=tuple(ladder), num_sweeps=4
    )
    assert explorer.path_log_weight is None
    swaps = 0
    for turns in recorded(explorer, size * chains * 4):
        replies = iter(zip(turns.asked, turns.told, turns.keys, strict=True))
        references = None
        for sweep in range(4):
            first = 0 if references is None else 1
            fresh = [[Path() for _ in range(size - first)] for _ in range(chains)]
            step = 0

            def heated(rewards, k):
                weights = np.exp(sigmoid(np.asarray(rewards)) / ladder[k])
                return weights / weights.sum()

            while any(path.active for chain in fresh for path in chain):
                request, reply, keys = next(replies)
                for k, key in enumerate(jax.random.split(keys.ask, chains)):
                    chain = fresh[k]
                    if step > 0 and any(path.active for path in chain):
                        last = [path.rewards[-1] for path in chain]
                        everyone = list(chain)
                        if first:
                            own = references[k].rewards
                            last.insert(0, own[min(step, len(own)) - 1])
                            everyone.insert(0, references[k])
                        drawn = multinomial(key, heated(last, k), size)[first:]
                        fresh[k] = chain = [everyone[j].copy(step) for j in drawn]
                    for row, path in enumerate(chain, start=k * size + first):
                        assert bool(request.extend[row]) == path.active
                        if path.active:
                            path.rewards.append(float(reply.log_potentials[row]))
                            path.active = not bool(reply.finished[row])
                step += 1
            key_draw, key_swap = jax.random.split(keys.tell)
            drawn = []
            for k, key in enumerate(jax.random.split(key_draw, chains)):
                everyone = ([references[k]] if first else []) + fresh[k]
                last = [path.rewards[-1] for path in everyone]
                drawn.append(everyone[multinomial(key, heated(last, k), 1)[0]])
                if k == 0:
                    cold = last
            references = drawn
            # Pairs that begin with an even chain are due in even sweeps.
            better = sigmoid(drawn[1].rewards[-1]) - sigmoid(drawn[0].rewards[-1])
            chance = min(1.0, math.exp((1 / ladder[0] - 1 / ladder[1]) * better))
            uniform = float(jax.random.uniform(key_swap, (1,))[0])
            if sweep % 2 == 0 and uniform < chance:
                references = drawn[::-1]
                swaps += 1
        assert next(replies, None) is None
        np.testing.assert_allclose(turns.state.log_potentials, cold, rtol=1e-5)
        assert int(turns.state.sample.length) == len(references[0].rewards)
    assert swaps > 5


def textbook_power(turns, power, block, moves, max_steps, released):
    """`mcmc_power_samp` and Algorithm 1 on steps in place of tokens, for one chain.

    A step is (log q, power log p, log potential), and q is the policy here.
    """
    replies = iter(zip(turns.asked, turns.told, turns.keys, strict=True))
    path, ended, limit, accepted = [], False, 0, 0

    def write(path, ended, longest, start):
        keys = None
        while start or (len(path) < longest and not ended):
            start = False
            request, reply, keys = next(replies)
            if not bool(request.extend[0]):
                break
            log_p = float(reply.log_probs[0])
            correction = float(reply.log_corrections[0])
            path = [*path, (log_p - correction, power * log_p)]
            ended = bool(reply.finished[0])
        return path, ended, keys

    for stage in range(-(-max_steps // block)):
        limit = min((len(path) if released else limit) + block, max_steps)
        path, ended, _ = write(path, ended, limit, start=stage == 0 or True)
        for _ in range(moves):
            span = len(path) if released else limit
            # The first turn of a move is the next reply; its key draws the cut.
            turn = len(turns.asked) - len(rest := list(replies))
            replies = iter(rest)
            uniform = float(jax.random.uniform(turns.keys[turn].ask, (1,))[0])
            cut = min(int(uniform * span), span - 1, len(path))
            kept_whole = cut == len(path)
            proposal, ending, keys = write(
                path[:cut], ended and kept_whole, span, start=True
            )
            new, old = proposal[cut:], path[cut:]
            if released:
                old = old[: len(new)]
            log_r = sum(p - q for q, p in new) - sum(p - q for q, p in old)
            key_accept = jax.random.split(keys.tell)[1]
            if math.log(float(jax.random.uniform(key_accept, (1,))[0])) < log_r:
                path, ended, accepted = proposal, ending, accepted + 1
        if released and ended:
            break
    assert next(replies, None) is None
    return path, ended, accepted


@pytest.mark.parametrize("variant", ["released", "printed"])
def test_power_sampling_in_blocks_is_the_code_and_the_print(variant):
    explorer = samplers.power_sampling(3.0, variant=variant, block_steps=2)
    assert explorer.path_log_weight is None
    moves = 0
    for turns in recorded(explorer, 13, seeds=8):
        path, ended, accepted = textbook_power(
            turns, 3.0, 2, 6, SHAPE.max_steps, variant == "released"
        )
        state = turns.state
        assert int(state.accepted) == accepted
        assert int(state.current.length[0]) == len(path)
        assert bool(state.finished[0]) == ended
        log_p = float(state.sample.log_prob)
        assert log_p == pytest.approx(sum(p for _, p in path) / 3.0, abs=1e-4)
        moves += int(state.iteration)
    # The code stops after the first block at whose end there is an answer.
    assert (moves == 16 * 12) == (variant == "printed")


def test_blocks_without_a_move_for_each_are_refused():
    for variant in ("released", "printed"):
        chain = samplers.power_sampling(variant=variant)
        with pytest.raises(ConfigurationError, match=r"17 rollouts, or blocks of .* 5"):
            chain.plan(16, 64)
        chain.plan(17, 64)
        samplers.power_sampling(variant=variant, block_steps=5).plan(16, 64)
        two = samplers.power_sampling(variant=variant, num_chains=2)
        with pytest.raises(ConfigurationError, match="34 rollouts"):
            two.plan(16, 64)
        # One rollout is one rollout.
        chain.plan(1, 64)


@pytest.mark.parametrize(
    "explorer",
    [
        samplers.particle_gibbs(num_sweeps=1),
        samplers.particle_gibbs(particles_per_sweep=8),
        samplers.particle_gibbs(particles_per_sweep=8, backward_sampling=True),
        samplers.pimh(num_iterations=1),
        samplers.pimh(particles_per_iteration=8),
        samplers.parallel_tempering(num_temperatures=2, num_sweeps=1),
        samplers.parallel_tempering(num_temperatures=2, particles_per_sweep=4),
    ],
)
def test_a_chain_whose_budget_has_no_move_is_refused(explorer):
    with pytest.raises(ConfigurationError, match="no move"):
        explorer.plan(8, 4)


@pytest.mark.parametrize(
    ("attempt", "complaint"),
    [
        (
            lambda: samplers.particle_filter("softmax", variant="released"),
            "has the weights",
        ),
        (
            lambda: samplers.particle_gibbs("odds", variant="printed"),
            "has the weights 'softmax'",
        ),
        (
            lambda: samplers.particle_gibbs(variant="printed", ancestor_sampling=True),
            "fixed weights and moves",
        ),
        (
            lambda: samplers.particle_gibbs(
                variant="released", schedule=samplers.never
            ),
            "independently at every step",
        ),
        (
            lambda: samplers.entropic_particle_filter("reward", variant="released"),
            "uses odds as weights",
        ),
        (
            lambda: samplers.parallel_tempering(
                variant="printed", potential=samplers.product()
            ),
            "fixed weights",
        ),
    ],
)
def test_a_mixture_of_what_was_run_and_what_was_printed_is_refused(attempt, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        attempt()


@pytest.mark.parametrize(
    "make",
    [
        samplers.particle_filter,
        samplers.entropic_particle_filter,
        samplers.particle_gibbs,
        samplers.parallel_tempering,
        samplers.power_sampling,
        samplers.rebase,
        samplers.step_beam_search,
    ],
)
def test_no_variant_is_called_published(make):
    with pytest.raises(UnknownNameError, match=r"released|printed"):
        make(variant="published")
