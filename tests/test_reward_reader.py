"""Rewards that read text: what is read bit by bit equals what is read at once."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reading_rewards as kinds
import tiny_language as tiny

from tsi.errors import ConfigurationError, PromptTooLongError, UnknownNameError
from tsi.reasoning.particles import ReasoningParams
from tsi.rewards.formats import ContinuationFormat, QwenFormat
from tsi.rewards.formatted import FormattedReward
from tsi.rewards.reward import Prompts, Step

STORED, WIDTH = 6, 4
RNG = np.random.default_rng(0)


class Rows:
    """Solutions and their reward's state, driven as the store drives them."""

    def __init__(self, name: str, rows: int, **changes):
        self.name, self.reward = name, kinds.reward_of(name, **changes)
        self.params = ReasoningParams(None, kinds.model_of(name), None, None)
        prompts = tiny.prompts(*kinds.QUESTIONS)
        prompts = prompts._replace(questions=self.reward.prepare(kinds.QUESTIONS))
        self.state = self.reward.init(prompts, 2 * rows, 0, self.params)
        self.steps: list[list[list[int]]] = [[] for _ in range(2 * rows)]
        self.ended = [False] * (2 * rows)
        self.turn = jax.jit(functools.partial(_turn, self.reward))

    def step_of(self, parents: list[int], depths: list[int], new: list[list[int]]):
        """Take rows, cut them, and have a step read where there is one."""
        steps = [
            self.steps[p][:d] + [n] * bool(n)
            for p, d, n in zip(parents, depths, new, strict=True)
        ]
        tokens = np.zeros((len(new), kinds.STEP_TOKENS), np.int32)
        solution = np.zeros((len(new), kinds.MAX_TOKENS), np.int32)
        for row in range(len(new)):
            tokens[row, : len(new[row])] = new[row]
            whole = list(itertools.chain(*steps[row]))
            solution[row, : len(whole)] = whole
        counts = np.asarray([len(n) for n in new])
        start = np.asarray([sum(map(len, s)) for s in steps]) - counts
        stopped = np.asarray([bool(n) and n[-1] == 0 for n in new])
        return steps, Step(
            *map(jnp.asarray, (tokens, counts, start, solution, stopped, stopped)),
            log_prob=-1.5 * jnp.asarray(start + counts, jnp.float32),
            policy=None,
            max_steps=kinds.MAX_STEPS,
        )

    def expected(self, steps, rows_per_question: int) -> np.ndarray:
        rows = []
        for row, parts in enumerate(steps):
            texts = [tiny.decode(part) for part in parts]
            ended = bool(parts) and parts[-1][-1] == 0
            question = kinds.QUESTIONS[row // rows_per_question]
            rows.append((question, texts, ended, -1.5 * sum(map(len, parts))))
        return kinds.at_once(self.name, rows)


def _turn(reward, state, parents, lengths, slots, step, params):
    rows = reward.cut(reward.take(state, parents), lengths)
    rows, reading = reward.read(rows, step, params)
    return reward.keep(state, slots, rows), reading


def random_step(rng, may_end: bool) -> list[int]:
    step = rng.integers(1, 20, rng.integers(1, kinds.STEP_TOKENS + 1)).tolist()
    return [*step[:-1], 0] if may_end and len(step) > 1 and rng.random() < 0.2 else step


@pytest.mark.long
@pytest.mark.parametrize("name", kinds.KINDS)
def test_rows_taken_cut_and_continued_score_as_if_read_at_once(name):
    rng, rows = np.random.default_rng(1), Rows(name, STORED)
    offsets = np.repeat(np.arange(2) * STORED, WIDTH)
    cuts = 0
    for _ in range(14):
        parents = offsets + rng.integers(0, STORED, 2 * WIDTH)
        slots = np.concatenate([rng.permutation(STORED)[:WIDTH] for _ in range(2)])
        slots = offsets + slots
        depths, new = [], []
        for parent in parents:
            full = len(rows.steps[parent])
            ended = bool(full) and rows.steps[parent][-1][-1] == 0
            depth = rng.integers(0, full + 1) if rng.random() < 0.5 else full
            if ended and depth == full:  # A finished row takes no step.
                new.append([])
            else:
                depth = min(depth, kinds.MAX_STEPS - 1)
                new.append(random_step(rng, may_end=True))
            depths.append(depth)
            cuts += depth < full
        steps, step = rows.step_of(list(parents), depths, new)
        lengths = np.asarray([sum(map(len, s)) for s in steps]) - np.asarray(
            step.counts
        )
        rows.state, reading = rows.turn(
            rows.state, *map(jnp.asarray, (parents, lengths, slots)), step, rows.params
        )
        took = np.asarray(step.counts) > 0
        expected = rows.expected(steps, WIDTH)
        np.testing.assert_allclose(
            np.asarray(reading.log_odds)[took], expected[took], rtol=2e-4, atol=2e-4
        )
        assert not np.asarray(reading.tokens_read)[~took].any()
        for slot, parts in zip(slots, steps, strict=True):
            rows.steps[slot] = parts
    assert cuts > 20
    assert np.ptp(expected) > 0.05


def grown(name: str, texts: list[str], **changes):
    """A row a question, step by step; also every reading."""
    rows, readings = Rows(name, 1, **changes), []
    everyone = jnp.arange(2)
    for depth, text in enumerate(texts):
        new = [tiny.encode(text)] * 2
        steps, step = rows.step_of([0, 1], [depth] * 2, new)
        rows.state, reading = rows.turn(
            rows.state, everyone, step.start, everyone, step, rows.params
        )
        rows.steps = steps
        readings.append(reading)
    return rows, readings


TEXTS = ["abc", "dabc", "eeh", "abqr"]


def test_every_token_is_read_once_and_where_it_stands():
    rows, readings = grown("qwen", TEXTS)
    read = sum(np.asarray(r.tokens_read) for r in readings)
    heads = np.asarray(rows.state.questions.lengths)
    for row, question in enumerate(kinds.QUESTIONS):
        size = len(rows.reward.format.render(question, TEXTS, False).tokens)
        assert read[row] == size - heads[row]
        # What is read begins where the last reading ended.
        ends = heads[row] + np.cumsum([r.tokens_read[row] for r in readings])
        begins = [int(r.begin[row]) for r in readings]
        assert begins == [heads[row], *ends[:-1]]
        assert heads[row] > size / 4


def test_tokens_that_merge_across_a_boundary_are_read_again():
    encode = kinds.tokenizer().encode
    merged = next(
        (a + b, i)
        for a in tiny.ALPHABET
        for b in tiny.ALPHABET
        for i in [encode(a + b)]
        if len(i) == 1
    )[0]
    rows, readings = grown("likelihood", ["a" + merged[0], merged[1] + "a"])
    read = sum(np.asarray(r.tokens_read) for r in readings)
    size = len(rows.reward.format.render("hello", ["a" + merged, "a"], False).tokens)
    head = int(rows.state.questions.lengths[0])
    # One token before each step, and the one that became another.
    assert read[0] == size - head + 2 + 1


def test_forked_rows_keep_what_was_read():
    rows, _ = grown("qwen", TEXTS[:2])
    assert (np.abs(rows.state.values) > 0).any(axis=1).all()
    forked = rows.reward.fork(rows.state, jnp.array([0, 0]))
    np.testing.assert_array_equal(forked.tokens[1], rows.state.tokens[0])
    np.testing.assert_array_equal(forked.values[1], rows.state.values[0])
    np.testing.assert_array_equal(forked.ends[1], rows.state.ends[0])
    np.testing.assert_array_equal(
        forked.suffix.segment.keys[:, 1], rows.state.suffix.segment.keys[:, 0]
    )


def test_a_text_without_room_has_no_score_and_spoils_none():
    size = len(kinds.reward_of("qwen").format.render("hello", TEXTS, False).tokens)
    _, wide = grown("qwen", [*TEXTS[:3], "a"])
    rows, tight = grown("qwen", TEXTS, max_tokens=size - 1)
    assert np.isnan(tight[-1].log_odds[0])
    for left, right in zip(wide[:3], tight[:3], strict=True):
        np.testing.assert_allclose(left.log_odds, right.log_odds, atol=1e-4)
    # Cut back to three steps, there is room again.
    _, step = rows.step_of([0, 1], [3, 3], [tiny.encode("a")] * 2)
    everyone = jnp.arange(2)
    _, reading = rows.turn(
        rows.state, everyone, step.start, everyone, step, rows.params
    )
    np.testing.assert_allclose(reading.log_odds, wide[3].log_odds, atol=1e-4)


def test_a_character_cut_by_a_step_goes_to_the_next():
    data = "aéb".encode()

    def decode(ids):
        return bytes(data[i] for i in ids).decode("utf-8", errors="replace")

    reward = FormattedReward(
        QwenFormat(kinds.tokenizer()), decode, max_steps=3, max_tokens=90
    )
    half, whole = np.array([2, 0, 0]), np.array([2, 4, 0])
    assert reward.steps(np.arange(4), whole, True)[0] == ["a", "éb"]
    # While the other half may follow, no mark is shown in its place.
    assert reward.steps(np.arange(4), half, False)[0] == ["a"]
    assert reward.steps(np.arange(4), half, True)[0] == ["a\ufffd"]


def test_what_cannot_work_is_named():
    with pytest.raises(PromptTooLongError, match="leaves no room"):
        kinds.reward_of("qwen", max_tokens=40).prepare(["hello"])
    with pytest.raises(ConfigurationError, match="max_tokens=0"):
        kinds.reward_of("qwen", max_tokens=0)
    with pytest.raises(UnknownNameError, match="aggregation of step scores"):
        kinds.reward_of("qwen", aggregation="median")
    reward = kinds.reward_of("qwen")
    params = ReasoningParams(None, kinds.model_of("qwen"), None, None)
    bare = tiny.prompts(*kinds.QUESTIONS)
    with pytest.raises(ConfigurationError, match="reads the text of the questions"):
        reward.init(bare, 2, 0, params)
    prompts = Prompts(bare.tokens, bare.lengths, reward.prepare(kinds.QUESTIONS))
    far = kinds.reward_of("qwen", max_tokens=kinds.ROOM + 1)
    with pytest.raises(ConfigurationError, match="context of its model is 256"):
        far.init(prompts, 2, 0, params)
    hidden, ids = jnp.zeros((1, 1, 32)), jnp.zeros((1, 1), jnp.int32)
    with pytest.raises(ConfigurationError, match="QwenFormat reads a ProcessScorer"):
        reward.values(kinds.model_of("rlhflow"), hidden, ids)
    with pytest.raises(ConfigurationError, match="reward model is a ProcessScorer"):
        kinds.reward_of("rlhflow").values(kinds.model_of("qwen"), hidden, ids)
    ratio = kinds.reward_of("likelihood")
    assert isinstance(ratio.format, ContinuationFormat)
    with pytest.raises(ConfigurationError, match="needs a LanguageModel"):
        ratio.values(kinds.model_of("qwen"), hidden, ids)
