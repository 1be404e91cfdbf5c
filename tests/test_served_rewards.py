"""Rewards over a served policy equal those of the engine on this machine."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from local_spelling import LocalSpelling
from scripted_chain import EOS, PROBABILITIES, tokens_of
from scripted_server import ScriptedServer
from served_faults import BRIEF, row_of
from test_served_exact import LIMITS, PROMPT

from tsi import samplers
from tsi.decoding.token_confidence import TokenConfidence
from tsi.errors import CapabilityError, ConfigurationError, ServerError
from tsi.problem import Problem
from tsi.rewards.aggregation import Aggregated
from tsi.rewards.host_reward import HostReward
from tsi.rewards.policy_confidence import PolicyConfidence
from tsi.rewards.self_judge import SelfJudge
from tsi.rewards.text_reward import TextReward
from tsi.rewards.verifier import Verifier
from tsi.samplers.parts import potentials
from tsi.serving.address import Address
from tsi.serving.choice import choice_of
from tsi.serving.client import Client
from tsi.serving.confidence_scorer import ConfidenceScorer
from tsi.serving.connect import connect
from tsi.serving.engine import ServedEngine
from tsi.serving.identify import identify
from tsi.serving.judge_question import judge_question
from tsi.serving.llama_cpp import LlamaCpp
from tsi.serving.policy import ServedPolicy
from tsi.serving.probe import measure
from tsi.serving.scorer import HostScorer, NoScorer, Score
from tsi.serving.served_judge import ServedJudge
from tsi.serving.served_reward import RewardSettings, parse_prm, served_reward
from tsi.serving.step import Controls
from tsi.serving.step_scores import aggregate_scores

QUESTION = SelfJudge((3, 4), 1, 5)
"""Asks with "+" and a line end; the answers are "1" and the end."""


@pytest.fixture(scope="module", params=["llama.cpp", "vLLM", "SGLang"])
def server(request):
    with ScriptedServer(request.param) as server:
        yield server


def policy_of(server: ScriptedServer):
    """A policy whose texts need no request."""
    client = Client(Address(server.url), patience=BRIEF)
    identity = client.call(identify(client))
    abilities = client.call(measure(client, identity, PROMPT, tokens_of("12")))
    return ServedPolicy(client, identity.dialect, abilities, LocalSpelling())


@pytest.fixture(scope="module")
def policy(server):
    policy = policy_of(server)
    yield policy
    policy.client.close()


def ask(policy, scorer, row) -> Score:
    return policy.client.call(scorer.ask(row))


def log_p(before: int, token: int) -> float:
    return math.log(PROBABILITIES[before][token])


def judge_of(policy, **changes) -> ServedJudge:
    judge = ServedJudge(policy, QUESTION, LocalSpelling().encode_prompt, **changes)
    judge.prepare(["1", "2"])
    return judge


def test_a_judges_log_odds_are_those_of_the_enumerated_model(policy, server):
    judge = judge_of(policy)
    score = ask(policy, judge, row_of(tokens_of("12\n"), [3]))
    assert score.log_odds == pytest.approx(log_p(4, 1) - log_p(4, 5), abs=1e-6)
    path, body = server.requests[-1]
    sent = body["input_ids"] if path == "/generate" else body["prompt"]
    assert sent == [*PROMPT, *tokens_of("12\n"), 3, 4]
    # Two ids of the prefix are new to llama.cpp, all but one to SGLang.
    cached = {"llama.cpp": len(sent) - 2, "vLLM": 0, "SGLang": 1}[server.dialect]
    assert score.tokens_read == len(sent) - cached
    assert judge.num_bounded == 0


def test_a_question_that_begins_with_the_end_of_a_turn_reads_it_once(policy, server):
    judge = ServedJudge(
        policy, SelfJudge((EOS, 3), 1, 5), LocalSpelling().encode_prompt
    )
    judge.prepare(["1"])
    for tokens, stopped in (([1, EOS], True), ([1], False)):
        ask(policy, judge, row_of(tokens, [len(tokens)], stopped=stopped))
        path, body = server.requests[-1]
        sent = body["input_ids"] if path == "/generate" else body["prompt"]
        assert sent == [*PROMPT, 1, EOS, 3]


def test_a_judges_step_scores_are_aggregated_and_asked_for_once(policy, server):
    judge = ServedJudge(
        policy, SelfJudge((3,), 1, 5), LocalSpelling().encode_prompt, aggregation="min"
    )
    judge.prepare(["1"])
    before = len(server.requests)
    ask(policy, judge, row_of([1, 4], [2]))
    ask(policy, judge, row_of([1, 4, 2], [2, 3]))
    assert len(server.requests) == before + 2
    # A row whose earlier scores are not known has them asked for.
    ask(policy, judge, row_of([2, 4, 2, 4], [2, 4]))
    assert len(server.requests) == before + 4


def test_an_answer_that_a_server_does_not_name_is_bounded_and_counted():
    with ScriptedServer("vLLM") as server:
        server.num_named = 3
        policy = policy_of(server)
        judge = ServedJudge(policy, SelfJudge((3,), 1, 5), lambda _: PROMPT)
        judge.prepare(["1"])
        score = ask(policy, judge, row_of([1], [1]))
        # After "+" the end is not among the three likeliest tokens.
        smallest = min(sorted(np.log(PROBABILITIES[3][1:]))[-3:])
        assert score.log_odds == pytest.approx(log_p(3, 1) - smallest, abs=1e-6)
        assert judge.num_bounded == 1
        policy.client.close()
    with pytest.raises(ServerError, match="none of the 2 answers of the judge"):
        choice_of({4: -0.1}, (1, 5), 3, 0)


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"completion_probabilities": [{"top_probs": 3}]},
        {"completion_probabilities": [{"top_probs": [{"id": 1, "prob": math.nan}]}]},
        {"completion_probabilities": [{"top_probs": [{"id": 1, "prob": 1.5}]}]},
        {"completion_probabilities": [{"top_probs": [{"id": -1, "prob": 0.5}]}]},
        {"completion_probabilities": [{"top_probs": [{"id": 1, "prob": 0.5}] * 9}]},
        {"choices": [{"logprobs": {"top_logprobs": [[]]}}], "usage": {}},
        {"choices": [{"logprobs": {"top_logprobs": [{"Yes": -0.1}]}}], "usage": {}},
        {"choices": [{"logprobs": {"top_logprobs": [{"token_id:1": "x"}]}}]},
        {"meta_info": {"output_token_ids_logprobs": [[[0.5, 1, None]] * 2]}},
        {"meta_info": {"output_token_ids_logprobs": [[[-0.5, 7, None]] * 2]}},
    ],
)
def test_a_malformed_choice_is_refused(policy, reply):
    with pytest.raises(ServerError):
        policy.dialect.read_choice(reply, (1, 5))


@pytest.mark.parametrize("timings", [None, {}, {"cache_n": None}, [], 3])
def test_a_judges_reply_without_timings_has_no_cached_tokens(timings):
    entry = {"top_probs": [{"id": 1, "prob": 0.6}, {"id": 5, "prob": 0.4}]}
    reply = {
        "completion_probabilities": [entry],
        "tokens_evaluated": 7,
        "timings": timings,
    }
    choice = LlamaCpp().read_choice(reply, (1, 5))
    assert choice.tokens_read == 7


class Templated(LocalSpelling):
    """A server's tokenizer with a template that wraps each turn in line ends."""

    chat_template = "on the server"

    def encode(self, text: str) -> list[int]:
        return [100 + ord(letter) for letter in text]

    def encode_chat(self, messages) -> list[int]:
        turns = [[4, *self.encode(m["content"]), 4] for m in messages]
        return [0, *itertools.chain(*turns), 6]


def test_a_question_in_a_servers_chat_template_ends_before_the_answer():
    question = judge_question(Templated(), "Right?")
    spelled = Templated().encode("Right?")
    assert question.question == (4, 4, *spelled, 4, 6)
    assert (question.yes, question.no) == (100 + ord("Y"), 100 + ord("N"))
    plain = Templated()
    plain.chat_template = None
    ending = "\nRight?\nAnswer: "
    assert judge_question(plain, "Right?").question == tuple(plain.encode(ending))


def test_a_judge_steers_a_filter_to_the_posterior_of_its_log_odds():
    """The evidence is the sum of p times the judge's odds over all solutions."""
    with ScriptedServer("llama.cpp") as server:
        policy = policy_of(server)
        judge = ServedJudge(
            policy, SelfJudge((3,), 1, 2), LocalSpelling().encode_prompt
        )
        engine = ServedEngine(policy, judge, LIMITS, delimiters=["\n"])
        problems = [Problem(i, "1", "") for i in range(3)]
        sampler = samplers.smc(potential=potentials.telescoping())
        results = engine.run(
            sampler, jax.random.key(0), problems, 4, extract=lambda text: text
        )
        # After "+" both answers are equally likely, so every weight is 1.
        for result in results:
            assert result.log_evidence <= 1e-6
            assert result.ledger.reward_tokens > 0
            np.testing.assert_allclose(result.rewards, 0.5)
        policy.client.close()


# The policy's confidence, and names


@pytest.mark.parametrize(
    "changes", [{}, {"scale": "raw"}, {"slope": 2.0, "offset": 0.5}]
)
def test_the_mean_log_probability_is_that_of_the_local_definition(changes):
    reward = PolicyConfidence(TokenConfidence("log-prob"), 6, **changes)
    scorer = ConfidenceScorer(reward, "mean-log-prob")
    tokens = [1, 3, 2, EOS]
    values = [log_p(a, b) for a, b in zip([PROMPT[-1], *tokens], tokens, strict=False)]
    row = row_of(tokens, [4], stopped=True, log_prob=sum(values))
    (found,) = scorer.score([row])
    padded = np.zeros((1, 6), np.float32)
    padded[0, :4] = values
    expected = reward.log_odds(reward.score(jnp.asarray(padded), jnp.asarray([4])))
    assert found.log_odds == pytest.approx(float(expected[0]), abs=1e-5)
    unknown, known = scorer.score([row._replace(log_prob=math.nan), row])
    assert isinstance(unknown, ServerError)
    assert known == found


class Ends(HostReward):
    """A reward of the number of steps, and of whether the last is as it should be."""

    def prepare(self, questions):
        return None

    def score_rows(self, rows):
        assert all(row.step_ends[-1] == len(row.tokens) for row in rows)
        return np.asarray([len(row.step_ends) for row in rows], float)


def test_a_function_sees_where_steps_end(policy):
    rows = [row_of([1, 4, 2, 4], [2, 4]), row_of([1, 4], [2])]
    scorer = HostScorer(Ends())
    scorer.prepare(["1"])
    assert [score.log_odds for score in scorer.score(rows)] == [2.0, 1.0]


@pytest.mark.parametrize("aggregation", ["min", "product", "mean"])
def test_step_scores_of_a_function_are_aggregated(policy, aggregation):
    texts = TextReward(
        lambda texts: np.asarray([1.0 - len(text) for text in texts]),
        policy.spelling.decode,
    )
    verifier = Verifier(
        lambda question, text, ended: 1.0 - len(text), policy.spelling.decode
    )
    rows = [row_of([1, 4, 2, 4], [2, 4]), row_of([1, 4], [2])]
    for reward in (texts, verifier):
        scorer = HostScorer(Aggregated(reward, aggregation, 3))
        scorer.prepare(["1"])
        scores = [score.log_odds for score in scorer.score(rows)]
        expected = [aggregate_scores([-1.0, -3.0], aggregation), -1.0]
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_scores_of_a_function_are_forgotten_between_runs(policy):
    """The function may have changed."""
    sign = [1.0]
    reward = TextReward(
        lambda texts: np.asarray([sign[0] * len(text) for text in texts]),
        policy.spelling.decode,
    )
    scorer = HostScorer(Aggregated(reward, "last", 3))
    rows, found = [row_of([1, 4, 2, 4], [2, 4])], []
    for sign[0] in (1.0, -1.0):
        scorer.prepare(["1"])
        found += [score.log_odds for score in scorer.score(rows)]
    assert found[0] == -found[1] != 0.0


def test_a_filter_weighs_by_the_servers_own_log_probabilities():
    with ScriptedServer("vLLM") as server:
        policy = policy_of(server)
        settings = RewardSettings(LIMITS)
        scorer = served_reward("mean-log-prob:scale=raw", policy, settings)
        rows, score = [], scorer.score
        scorer.score = lambda new: rows.extend(new) or score(new)
        engine = ServedEngine(policy, scorer, LIMITS, delimiters=["\n"])
        (result,) = engine.run(
            samplers.best_of_n(),
            jax.random.key(0),
            [Problem(0, "1", "")],
            8,
            extract=lambda text: text,
        )
        for row in rows:
            pairs = itertools.pairwise([PROMPT[-1], *row.tokens])
            assert row.log_prob == pytest.approx(sum(itertools.starmap(log_p, pairs)))
        means = {row.log_prob / len(row.tokens) for row in rows}
        found = np.log(result.rewards) - np.log1p(-np.asarray(result.rewards))
        for value in found:
            assert min(abs(value - mean) for mean in means) < 1e-4
        assert np.ptp(found) > 0.01
        policy.client.close()


SETTINGS = RewardSettings(LIMITS, checks={"verifier": lambda q, t, e: 1.0})


def test_names_become_rewards(policy):
    assert isinstance(served_reward("none", policy, SETTINGS), NoScorer)
    verifier = served_reward("verifier", policy, SETTINGS)
    assert isinstance(verifier, HostScorer)
    verifier.prepare(["1"])
    assert verifier.score([row_of([1], [1])]) == [Score(1.0)]
    assert parse_prm("http://h:1#a/b,format=skywork,tokenizer=x/y") == (
        "http://h:1#a/b",
        {"format": "skywork", "tokenizer": "x/y"},
    )


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("likelihood:smollm2-135m", CapabilityError, "second model"),
        ("value:head.npz", CapabilityError, "hidden states"),
        ("self-certainty", CapabilityError, "distribution at each token"),
        ("mean-log-prob:last=3", CapabilityError, "without a window"),
        ("outcome-verifier", ConfigurationError, "this task has none"),
        ("chain-reward", ConfigurationError, "served-tokenizer"),
        ("served-prm", ConfigurationError, "is written served-prm:URL#MODEL"),
        ("served-judge:", ConfigurationError, "is written served-judge:URL#MODEL"),
        ("served-prm:http://h:1#m", ConfigurationError, "tokenizer=PATH"),
        ("served-prm:http://h:1#m,format=q", Exception, "format of a reward model"),
        ("served-prm:http://h:1#m,size=3", Exception, "option of served-prm"),
        ("served-prm:ftp://h#m,tokenizer=x", ConfigurationError, "not the address"),
    ],
)
def test_a_reward_that_a_server_cannot_have_is_refused(policy, name, error, sentence):
    with pytest.raises(error, match=sentence):
        served_reward(name, policy, SETTINGS)


def test_mean_log_prob_needs_the_models_own_distribution(policy):
    settings = SETTINGS._replace(controls=Controls(temperature=0.5))
    if policy.abilities.log_probs == "raw":
        assert served_reward("mean-log-prob", policy, settings).needs_log_probs
    else:
        with pytest.raises(CapabilityError, match="temperature 1"):
            served_reward("mean-log-prob", policy, settings)


def test_solutions_for_text_servers_cannot_be_judged():
    with ScriptedServer("text") as server:
        policy = connect(server.url)
        with pytest.raises(CapabilityError, match="takes only text"):
            ServedJudge(policy, QUESTION, policy.spelling.encode_prompt)
        policy.client.close()
