"""Reward models behind a server, or here, score as those of the engine."""

import asyncio
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reading_rewards as kinds
import tiny_language as tiny
from scripted_server import ScriptedServer
from served_faults import BRIEF, policy_of, row_of

from tsi.errors import ConfigurationError, ServerError
from tsi.experiments.worlds.served_world import reward_settings
from tsi.loading.model_checks import load_model
from tsi.models.decoder import RewardModel
from tsi.models.loading.download import get
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.reasoning.limits import SolutionLimits
from tsi.serving.address import Address
from tsi.serving.choice import choice_of
from tsi.serving.client import Client
from tsi.serving.local_rendering import IdRenderer, TextRenderer
from tsi.serving.local_scorer import LocalScorer
from tsi.serving.reading_slots import bytes_per_slot
from tsi.serving.served_prm import ChosenMarks, PooledMarks, ServedPrm
from tsi.serving.served_reward import RewardSettings, served_reward

# Reward models behind a server


@jax.jit
def trunk(model, tokens):
    return model.trunk(tokens, jnp.arange(tokens.shape[1])[None])


def head_scores(name: str):
    """What vLLM's model would answer: rows of labels of a model of this machine."""
    model = kinds.model_of(name)

    def scores(ids, activation):
        hidden, _ = trunk(model, jnp.asarray([ids + [0] * (kinds.ROOM - len(ids))]))
        labels = np.asarray(model.labels(hidden)[0, : len(ids)], np.float64)
        if activation:
            if labels.shape[1] == 1:
                labels = 1 / (1 + np.exp(-labels))
            else:
                labels = np.exp(labels) / np.exp(labels).sum(axis=1, keepdims=True)
        return labels.tolist()

    return scores


STEPS = [["abc", "dec"], ["abc", "dec", "fa"], ["c"]]


def rows_of_texts(texts):
    rows = []
    for steps in texts:
        tokens = [tiny.encode(step) for step in steps]
        ends = np.cumsum([len(t) for t in tokens])
        rows.append(row_of(itertools.chain(*tokens), ends.tolist()))
    return rows


@pytest.mark.parametrize("ignores", [False, True], ids=["as-asked", "probabilities"])
@pytest.mark.parametrize("name", ["qwen", "skywork", "outcome", "qwen-model"])
def test_a_served_reward_model_scores_as_on_this_machine(name, ignores):
    scores = head_scores(name)
    with ScriptedServer("vLLM") as server:
        server.scores = lambda ids, on: scores(ids, on or ignores)
        client = Client(Address(server.url), patience=BRIEF)
        reward = kinds.reward_of(name)
        probe = reward.format.render("hello", ["a"], True).tokens
        marks = PooledMarks(client, "tiny", name == "outcome", probe)
        prm = ServedPrm(marks, reward, "prm")
        prm.prepare(["hello"])
        found = [client.call(prm.ask(row)) for row in rows_of_texts(STEPS)]
        expected = kinds.at_once(name, [("hello", s, False, 0.0) for s in STEPS])
        np.testing.assert_allclose(
            [score.log_odds for score in found], expected, rtol=1e-3, atol=1e-3
        )
        assert np.ptp(expected) > 0.05
        size = len(reward.format.render("hello", ["".join(STEPS[2])], False).tokens)
        assert found[2].tokens_read == size
        client.close()


def test_a_served_reward_model_is_named_without_its_address(tmp_path):
    kinds.tokenizer().save(tmp_path)
    limits = SolutionLimits(3, 3, 6)
    with ScriptedServer("vLLM") as server:
        server.scores = lambda ids, on: [[0.5 + on, 2.0]] * len(ids)
        policy = policy_of(server)
        name = f"served-prm:{server.url},format=qwen,tokenizer={tmp_path}"
        prm = served_reward(name, policy, RewardSettings(limits, patience=BRIEF))
        assert prm.name == "served-prm:tiny,format=qwen"
        assert reward_settings(prm, name, "last") == {
            "reward": prm.name,
            "reward_address": server.url,
        }
        prm.marks.client.close()
        policy.client.close()


def test_a_server_that_answers_at_separators_alone_is_understood():
    scores, reward = head_scores("qwen"), kinds.reward_of("qwen")
    separator = kinds.tokenizer().backend.token_to_id("<extra_0>")
    with ScriptedServer("vLLM") as server:
        server.scores = lambda ids, on: [
            row for row, id in zip(scores(ids, on), ids, strict=True) if id == separator
        ]
        client = Client(Address(server.url), patience=BRIEF)
        probe = reward.format.render("hello", ["a"], True).tokens
        prm = ServedPrm(PooledMarks(client, None, False, probe), reward, "prm")
        prm.prepare(["hello"])
        (row,) = rows_of_texts(STEPS[:1])
        expected = kinds.at_once("qwen", [("hello", STEPS[0], False, 0.0)])
        found = client.call(prm.ask(row)).log_odds
        assert found == pytest.approx(expected[0], abs=1e-3)
        client.close()


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ([], "must be a list of at most"),
        ([[math.nan, 0.0]], "must be a finite number"),
        ([[0.1] * 64] * 2, "64 numbers per token"),
        ([[0.1, 0.2], [0.1]], "2 numbers per token"),
        ([[0.1, 0.2]] * 10_000, "must be a list of at most"),
        ([[0.1, 0.2]] * 3, "scored 3 tokens"),
    ],
)
def test_a_malformed_score_is_refused(scores, sentence):
    reward, good = kinds.reward_of("qwen"), head_scores("qwen")
    with ScriptedServer("vLLM") as server:
        server.scores = good
        client = Client(Address(server.url), patience=BRIEF)
        probe = reward.format.render("hello", ["a"], True).tokens
        prm = ServedPrm(PooledMarks(client, None, False, probe), reward, "prm")
        prm.prepare(["hello"])
        server.scores = lambda ids, on: scores
        with pytest.raises(ServerError, match=sentence):
            client.call(prm.ask(rows_of_texts(STEPS)[0]))
        client.close()


def test_two_compared_tokens_are_read_as_candidates_once_per_step():
    """A model that is asked at each mark, here by a table of its next tokens."""
    reward = kinds.reward_of("math-shepherd")
    asked = []

    class Table:
        async def choose(self, tokens, candidates):
            asked.append(tuple(tokens))
            named = {candidates[0]: -0.1 * len(tokens), candidates[1]: -1.0}
            return choice_of(named, candidates, len(tokens), 2)

    prm = ServedPrm(ChosenMarks(Table(), (1, 2)), reward, "prm")
    prm.prepare(["hello"])
    first, second, _ = rows_of_texts(STEPS)
    asyncio.run(prm.ask(first))
    assert len(asked) == 2
    found = asyncio.run(prm.ask(second))
    # A prefix that is the same ids again is known, unless the next step merges with it.
    renderings = [reward.format.render("hello", steps, False) for steps in STEPS[:2]]
    prefixes = [
        tuple(tokens[: mark + 1]) for tokens, marks in renderings for mark in marks
    ]
    assert asked == list(dict.fromkeys(prefixes))
    rendering = renderings[1]
    scores = [-0.1 * (mark + 1) + 1.0 for mark in rendering.marks]
    assert found.log_odds == pytest.approx(min(scores), abs=1e-6)
    assert found.tokens_read == sum(len(tokens) - 2 for tokens in asked[2:])


# Reward models of this machine


def local(name: str, **changes) -> LocalScorer:
    renderer = TextRenderer(kinds.reward_of(name))
    return LocalScorer(kinds.model_of(name), renderer, name, **changes)


@pytest.mark.parametrize(("name", "slots"), [("qwen", 2), ("math-shepherd", 40)])
def test_rows_in_any_order_score_as_if_read_at_once(name, slots):
    rng = np.random.default_rng(3)
    each = bytes_per_slot(kinds.model_of(name), kinds.ROOM)
    scorer = local(name, max_bytes=slots * each)
    scorer.prepare(kinds.QUESTIONS)
    known = [[(), ()] for _ in range(2)]  # problem: tokens, ends
    for _ in range(6):
        rows, texts = [], []
        for _ in range(5):
            problem = int(rng.integers(2))
            # Forks, cuts and new steps: any prefix of any earlier row.
            tokens, ends = known[problem] if rng.random() < 0.8 else ((), ())
            depth = int(rng.integers(0, len(ends) + 1))
            ends = ends[: min(depth, kinds.MAX_STEPS - 1)]
            tokens = tokens[: ends[-1] if ends else 0]
            step = rng.integers(1, 20, rng.integers(1, 5)).tolist()
            tokens, ends = (*tokens, *step), (*ends, len(tokens) + len(step))
            known[problem] = [tokens, ends]
            rows.append(row_of(tokens, ends, problem))
            cuts = [0, *ends]
            steps = [
                tiny.decode(list(tokens[a:b])) for a, b in itertools.pairwise(cuts)
            ]
            texts.append((kinds.QUESTIONS[problem], steps, False, 0.0))
        found = [score.log_odds for score in scorer.score(rows)]
        np.testing.assert_allclose(
            found, kinds.at_once(name, texts), rtol=5e-4, atol=5e-4
        )
    assert np.ptp(found) > 0.02


@pytest.mark.long
def test_a_token_head_scores_as_if_read_at_once_and_reads_each_token_once():
    model = load_model(get("chain-reward"), RewardModel, "reward")
    tokenizer = load_tokenizer(get("chain-policy"))
    questions = ["3+4*2-1", "9-2+6"]
    scorer = LocalScorer(model, IdRenderer(tokenizer.encode_prompt, 64, "last"), "head")
    scorer.prepare(questions)
    prompts = [tokenizer.encode_prompt(question) for question in questions]
    at_once = jax.jit(lambda model, tokens: model(tokens))
    lines = ["4*2=8\n", "3+8=11\n", "11-1=10\n"]
    read = generated = 0
    rows = [row_of((), (), problem) for problem in (0, 1, 0, 1)]
    for depth, line in enumerate(lines):
        new = [tokenizer.encode(line[: len(line) - i]) for i in range(len(rows))]
        rows = [
            row._replace(
                tokens=(*row.tokens, *step),
                ends=(*row.ends, len(row.tokens) + len(step)),
            )
            for row, step in zip(rows, new, strict=True)
        ]
        scores = scorer.score(rows)
        read += sum(score.tokens_read for score in scores)
        generated += sum(map(len, new))
        whole: list = [[*prompts[row.problem], *row.tokens] for row in rows]
        padded = jnp.asarray([ids + [0] * (64 - len(ids)) for ids in whole])
        said = np.asarray(at_once(model, padded))
        expected = [said[i, len(ids) - 1] for i, ids in enumerate(whole)]
        found = [score.log_odds for score in scores]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        # All rows go on from one that was forked.
        if depth == 1:
            rows = [rows[row.problem] for row in rows]
    assert read == generated + sum(map(len, prompts))


def test_a_model_without_room_for_two_texts_is_refused():
    with pytest.raises(ConfigurationError, match="bytes per text"):
        local("qwen", max_bytes=1000)
