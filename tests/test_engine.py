"""The engine gives every problem what it would get alone, and prices it."""

import collections
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from flax import nnx

from tsi import samplers
from tsi.accuracy.evidence_variance import genealogy, relative_variance
from tsi.decoding.boundary import step_boundary
from tsi.engine.engine import Engine
from tsi.errors import ConfigurationError, ProblemError, PromptTooLongError
from tsi.explorer import ExplorerInfo
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.problem import Problem
from tsi.reasoning.particles import ReasoningParams
from tsi.results.ledger import ledger_of_first
from tsi.rewards.reward import NoReward
from tsi.rewards.self_judge import SelfJudge
from tsi.run import run

PROBLEMS = [Problem(i, tiny.ALPHABET[i : i + 3 + i % 4], "") for i in range(5)]


def extract(text: str) -> str | None:
    return text[-1:] or None


def engine(max_rows: int = 64, **changes) -> Engine:
    """An engine of the tiny models, with no program compiled yet."""
    policy, reward = tiny.models()
    arguments = {"encode": tiny.encode, "decode": tiny.decode, "max_rows": max_rows}
    return Engine(tiny.target(), policy, reward, **(arguments | changes))


@functools.cache
def shared_engine(max_rows: int = 64) -> Engine:
    """One that all tests share, for those that count and patch no programs."""
    return engine(max_rows)


def same(left, right):
    assert left.texts == right.texts
    assert left.selected == right.selected
    np.testing.assert_array_equal(left.steps.ancestors, right.steps.ancestors)
    np.testing.assert_allclose(left.log_weights, right.log_weights, atol=1e-4)
    evidence = pytest.approx(right.log_evidence, abs=1e-4, nan_ok=True)
    assert left.log_evidence == evidence
    assert left.ledger[:3] == right.ledger[:3]


SAMPLER = samplers.particle_filter()


@pytest.mark.long
def test_a_problem_gets_the_same_whatever_shares_its_batch():
    key = jax.random.key(7)
    together = shared_engine().run(SAMPLER, key, PROBLEMS, 8, extract=extract)
    alone = shared_engine(16).run(SAMPLER, key, PROBLEMS[::-1], 8, extract=extract)[
        ::-1
    ]
    for left, right in zip(together, alone, strict=True):
        same(left, right)


@pytest.mark.long
def test_a_problem_gets_what_tsi_run_gives_it():
    key, policy_and_reward = jax.random.key(7), tiny.models()
    results = shared_engine().run(SAMPLER, key, PROBLEMS, 8, extract=extract)
    target = tiny.target()
    alone = jax.jit(lambda key, params: run(SAMPLER, target, key, 8, params))
    for problem, result in zip(PROBLEMS, results, strict=True):
        params = ReasoningParams(
            *policy_and_reward, tiny.prompts(problem.prompt), jnp.float32(1.0)
        )
        final = alone(jax.random.fold_in(key, problem.id), params)
        rows = zip(final.particles.tokens, final.particles.lengths, strict=True)
        assert [tiny.decode(row[:n].tolist()) for row, n in rows] == result.texts
        steps = int(final.num_steps)
        np.testing.assert_array_equal(
            final.infos.ancestors[:steps], result.steps.ancestors
        )
        np.testing.assert_allclose(
            final.state.log_weights, result.log_weights, atol=1e-4
        )
        says_of_itself(result, final)


def says_of_itself(result, final):
    """Errors and rewards by step, from a run of the same samples."""
    infos, steps = final.infos, final.num_steps
    variance = relative_variance(
        final.state.log_weights, infos.ancestors, infos.resampled, steps
    )
    expected = float(variance) if np.isfinite(result.log_evidence) else np.nan
    assert result.evidence.variance == pytest.approx(expected, abs=1e-3, nan_ok=True)
    assert result.posterior.errors.keys() == result.answer_posterior.keys()
    eves = genealogy(infos.ancestors, steps).unique_eves[-1]
    assert result.steps.unique_ancestors[0] == int(eves)
    odds = np.exp(np.asarray(infos.log_potentials[:steps]))
    np.testing.assert_allclose(result.steps.rewards, odds / (1 + odds), atol=1e-4)
    whole = ~result.particles.truncated
    np.testing.assert_allclose(
        result.steps.rewards[-1][whole], result.rewards[whole], atol=1e-6
    )


@pytest.mark.long
def test_without_resampling_a_smaller_budget_is_the_first_particles():
    key, sampler = jax.random.key(7), samplers.self_consistency()
    eight = shared_engine().run(sampler, key, PROBLEMS, 8, extract=extract)
    three = shared_engine().run(sampler, key, PROBLEMS, 3, extract=extract)
    for large, small in zip(eight, three, strict=True):
        assert large.texts[:3] == small.texts
        assert ledger_of_first(large.slots, 3, 0.0)[:3] == small.ledger[:3]
        assert ledger_of_first(large.slots, 3, 0.0).flops == pytest.approx(
            small.ledger.flops
        )


@pytest.mark.long
def test_the_ledger_counts_every_token_of_every_rollout():
    result = shared_engine().run(
        samplers.self_consistency(), jax.random.key(1), PROBLEMS[:1], 4, extract=extract
    )[0]
    # Without resampling nothing is thrown away: texts are all that was generated,
    # and every text that was not cut off has one end token more.
    written = (
        sum(len(text) for text in result.texts) + 4 - result.diagnostics.num_truncated
    )
    assert result.ledger.generated_tokens == written
    assert result.ledger.reward_tokens == written + len(PROBLEMS[0].prompt)


def test_greedy_depends_on_no_seed():
    runs = [
        shared_engine().run(
            samplers.greedy(),
            jax.random.key(s),
            PROBLEMS,
            1,
            extract=extract,
            temperature=0.0,
        )
        for s in (0, 1)
    ]
    assert [r.texts for r in runs[0]] == [r.texts for r in runs[1]]


@pytest.mark.long
def test_the_steps_of_a_text_end_at_boundaries():
    for result in shared_engine().run(
        SAMPLER, jax.random.key(2), PROBLEMS, 4, extract=extract
    ):
        for text, steps in zip(result.texts, result.particles.step_texts, strict=True):
            assert "".join(steps) == text
            for step in steps[:-1]:
                assert step.endswith("c") or len(step) == 6
                assert "c" not in step[:-1]


def test_a_prompt_that_does_not_fit_is_named_before_anything_runs():
    long = Problem(41, "a" * 90, "")
    with pytest.raises(PromptTooLongError, match="problem 41 has 90 tokens"):
        shared_engine().run(SAMPLER, jax.random.key(0), [long], 2, extract=extract)


def test_the_judges_question_needs_room_in_the_context():
    policy, _ = tiny.models()
    target = tiny.target(reward=SelfJudge((3,) * 5, yes=2, no=4))
    e = Engine(target, policy, None, encode=tiny.encode, decode=tiny.decode)
    most = policy.config.max_length - target.max_tokens - 5
    e.check([Problem(0, "a" * most, "")])
    with pytest.raises(PromptTooLongError, match=f"question of 5 .* 1 to {most}"):
        e.check([Problem(0, "a" * (most + 1), "")])


def test_a_reward_model_must_read_the_policys_ids_and_as_far():
    policy, _ = tiny.models()
    arguments = {"encode": tiny.encode, "decode": tiny.decode}
    _, other = tiny.models(vocab_size=7)
    with pytest.raises(ConfigurationError, match="20 token ids and the reward model 7"):
        Engine(tiny.target(), policy, other, **arguments)
    short = RewardModel(tiny.config(max_length=30), rngs=nnx.Rngs(0))
    e = Engine(tiny.target(), policy, short, **arguments)
    with pytest.raises(
        PromptTooLongError, match="context of 30 leaves room for 1 to 6"
    ):
        e.run(SAMPLER, jax.random.key(0), [Problem(0, "a" * 7, "")], 2, extract=extract)
    shorter = RewardModel(tiny.config(max_length=20), rngs=nnx.Rngs(0))
    e = Engine(tiny.target(), policy, shorter, **arguments)
    with pytest.raises(PromptTooLongError, match="20 leaves no room for a prompt"):
        e.check([Problem(0, "a", "")])


def test_rewards_that_are_no_numbers_are_counted_and_never_win():
    e = engine()
    e.reward_model.bias[...] = jnp.full_like(e.reward_model.bias[...], jnp.nan)
    result = e.run(SAMPLER, jax.random.key(0), PROBLEMS[:1], 4, extract=extract)[0]
    assert result.diagnostics.num_invalid > 0
    assert result.diagnostics.num_recoveries > 0
    assert np.isfinite(result.log_weights).all()
    assert not np.isnan(result.log_evidence)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_particles": 0}, "num_particles is 0"),
        ({"num_particles": -2}, "num_particles is -2"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": 1e39}, "temperature is 1e\\+39"),
        ({"temperature": 1e-46}, "temperature is 1e-46"),
        ({"proposal_temperature": -1.0}, "proposal_temperature is -1.0"),
        ({"proposal_temperature": math.inf}, "proposal_temperature is inf"),
        ({"proposal_temperature": 1e-46}, "proposal_temperature is 1e-46"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(arguments, says):
    settings = {"num_particles": 2, "extract": extract} | arguments
    with pytest.raises(ConfigurationError, match=says):
        shared_engine().run(SAMPLER, jax.random.key(0), PROBLEMS, **settings)


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_fail_their_problem_at_its_step(temperature):
    size = len(tiny.ALPHABET) + 1
    letters = [b"", *(letter.encode() for letter in tiny.ALPHABET)]
    policy = LanguageModel(tiny.config(tied=False), rngs=nnx.Rngs(0))
    embedding = policy.trunk.embedding
    embedding[...] = embedding[...].at[size - 1].set(jnp.nan)
    # The policy never writes the letter; one prompt has it.
    boundary = step_boundary(letters, b"c", [0], padding=[size - 1])
    broken = Engine(
        tiny.target(boundary=boundary, reward=NoReward()),
        policy,
        None,
        encode=tiny.encode,
        decode=tiny.decode,
    )
    problems = [Problem("good", "abc", ""), Problem("bad", "s", "")]
    with pytest.raises(ProblemError, match="logits are not numbers") as raised:
        broken.run(
            SAMPLER,
            jax.random.key(0),
            problems,
            4,
            extract=extract,
            temperature=temperature,
        )
    assert raised.value.steps == {"bad": 1}
    assert [result.problem_id for result in raised.value.results] == ["good"]


def steps_as_read(text: str, delimiters, stops, least: int, most: int):
    """A text of letters, cut into steps by search, and whether a string stops it."""
    steps, begin, behind = [], 0, 0
    for end in range(1, len(text) + 1):
        # The search goes on where a step is cut, and begins anew behind what it found.
        found = any(text[behind:end].endswith(mark) for mark in delimiters)
        behind = end if found else behind
        stopped = any(text[:end].endswith(stop) for stop in stops)
        length = end - begin
        if stopped or (found and length >= least) or length == most:
            steps.append(text[begin:end])
            begin = end
        if stopped:
            return steps, True, text[end:]
    return ([*steps, text[begin:]] if begin < len(text) else steps), False, ""


@pytest.mark.long
@pytest.mark.parametrize("least", [1, 3])
def test_steps_and_solutions_end_at_strings_of_one_s_own(least):
    size, delimiters, stops = 6, ["cc", "ab"], ["dd", "ccd"]
    letters = [b"", *(letter.encode() for letter in tiny.ALPHABET[: size - 1])]
    boundary = step_boundary(
        letters,
        [mark.encode() for mark in delimiters],
        [0],
        stop_strings=[stop.encode() for stop in stops],
        min_step_tokens=least,
    )
    policy, reward = tiny.models(size, sharpness=0.5)
    target = tiny.target(boundary=boundary)
    models = {"encode": tiny.encode, "decode": tiny.decode}
    runner = Engine(target, policy, reward, **models)
    key, problems = jax.random.key(2), [Problem(0, "abc", ""), Problem(1, "dec", "")]
    seen = collections.Counter()
    for sampler in (
        samplers.self_consistency(),
        samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True),
    ):
        results = runner.run(sampler, key, problems, 32, extract=extract)
        for result in results:
            for text, steps, cut in zip(
                result.texts,
                result.particles.step_texts,
                result.particles.truncated,
                strict=True,
            ):
                expected, stopped, beyond = steps_as_read(
                    text, delimiters, stops, least, target.max_step_tokens
                )
                # The end token alone is a step without a letter.
                assert [step for step in steps if step] == expected
                assert not beyond
                assert not (stopped and cut)
                assert all(len(step) >= least for step in steps[:-1])
                seen[stopped, bool(cut)] += 1
    assert min(seen[True, False], seen[False, False]) > 10


@pytest.mark.long
def test_log_p_of_solutions_that_strings_end_is_the_policys_own():
    boundary = step_boundary(
        [b"", *(x.encode() for x in tiny.ALPHABET[:5])], b"c", [0], stop_strings=[b"dd"]
    )
    target = tiny.target(boundary=boundary)
    policy, reward = tiny.models(6, sharpness=0.5)
    params = ReasoningParams(policy, reward, tiny.prompts("abc"), jnp.float32(1.0))
    sampler, key = samplers.self_consistency(), jax.random.key(3)
    final = jax.jit(lambda key: run(sampler, target, key, 64, params))(key)
    rows, stopped = jax.device_get(final.particles), 0
    written = [
        row[:n].tolist() for row, n in zip(rows.tokens, rows.lengths, strict=True)
    ]
    totals, _ = tiny.uncached(params, [("abc", tokens) for tokens in written])
    for row, tokens in enumerate(written):
        assert float(rows.log_prob[row]) == pytest.approx(totals[row], abs=1e-3)
        ends = tiny.decode(tokens).endswith("dd")
        assert bool(rows.truncated[row]) == (not ends and tokens[-1] != 0)
        stopped += ends
    assert stopped > 5


class Talkative(NamedTuple):
    """An info with fields of its own, one of them for each particle."""

    ancestors: jax.Array
    spread: jax.Array
    squares: dict


@pytest.mark.long
@pytest.mark.parametrize("as_dict", [False, True])
def test_what_a_sampler_of_ones_own_says_of_its_steps_is_in_the_result(as_dict):
    inner = samplers.particle_filter()

    def tell(key, state, *told):
        state, info = inner.tell(key, state, *told)
        own = Talkative(
            info.ancestors,
            jnp.std(state.log_potentials),
            {"of potentials": state.log_potentials**2},
        )
        return state, own._asdict() if as_dict else own

    key = jax.random.key(7)
    runner, own = shared_engine(16), inner._replace(tell=tell)
    plain = runner.run(inner, key, PROBLEMS, 8, extract=extract)
    results = runner.run(own, key, PROBLEMS, 8, extract=extract)
    for left, right in zip(plain, results, strict=True):
        same(left, right)
        assert not left.steps.infos
        assert right.steps.infos.keys() == {"spread", "squares"}
        steps = len(right.steps.ess)
        assert right.steps.infos["spread"].shape == (steps,)
        squares = right.steps.infos["squares"]["of potentials"]
        assert squares.shape == (steps, 8)
        rewards = np.asarray(right.steps.rewards, np.float64)
        log_odds = np.log(rewards) - np.log1p(-rewards)
        seen = rewards > 0
        np.testing.assert_allclose(squares[seen], log_odds[seen] ** 2, rtol=1e-3)
        assert (right.steps.infos["spread"] > 0).any()


@pytest.mark.long
def test_what_an_explorer_of_ones_own_says_of_its_turns_is_in_the_result():
    inner = samplers.mcts()
    more = collections.namedtuple("more", (*ExplorerInfo._fields, "best"))

    def tell(key, state, reply):
        state, info = inner.tell(key, state, reply)
        return state, more(*info, jnp.max(reply.log_potentials))

    runner = shared_engine(16)
    own = inner._replace(tell=tell)
    (result,) = runner.run(own, jax.random.key(7), PROBLEMS[:1], 4, extract=extract)
    assert result.steps.infos.keys() == {"best"}
    assert np.isfinite(result.steps.infos["best"]).any()
