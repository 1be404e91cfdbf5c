"""Confidence as a reward by name, from the command line to what it scores."""

import math

import jax
import numpy as np
import pytest

from tsi import samplers
from tsi.decoding.token_confidence import TokenConfidence
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.cli import main
from tsi.experiments.rows.results import read_rows
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.loading.confidence_reward import MEASURE_OF, confidence_reward
from tsi.loading.named_reward import parse_reward
from tsi.rewards.policy_confidence import PolicyConfidence

SOLVE = ["solve", "3+4*2-1", "--budget", "2", "--method", "best_of_n"]


def test_a_name_and_its_options_make_a_reward():
    for kind, measure in MEASURE_OF.items():
        plain = confidence_reward(kind, "", 99)
        assert plain.confidence == TokenConfidence(measure)
        assert (plain.max_tokens, plain.scale) == (99, "probability")
        tail = kind == "tail-entropy"
        assert (plain.window, plain.size) == (("last", 64) if tail else ("all", 1))
    options = "worst=32,scale=raw,slope=2.5,offset=-1,k=5"
    assert confidence_reward("token-confidence", options, 9) == PolicyConfidence(
        TokenConfidence("top-k", 5), 9, "worst", 32, "raw", 2.5, -1.0
    )
    assert confidence_reward("tail-entropy", "worst=3", 9).window == "worst"
    assert confidence_reward("self-certainty", "last=3", 9).size == 3
    name = "self-certainty:last=3"
    assert str(parse_reward(name)) == name
    assert str(parse_reward("mean-log-prob")) == "mean-log-prob"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("self-certainty:window=3", "no option of the reward self-certainty named 'wi"),
        ("self-certainty:k=3", "no option of the reward self-certainty named 'k'"),
        ("tail-entropy:last=x", "last of the reward tail-entropy is 'x'. Give an int"),
        ("tail-entropy:last", "last of the reward tail-entropy is ''. Give an int"),
        ("tail-entropy:slope=a", "slope of the reward tail-entropy is 'a'. Give a num"),
        ("tail-entropy:last=1,last=2", "is given twice"),
        ("tail-entropy:last=1,worst=2", "both last and worst are given"),
        ("mean-log-prob:last=0", "window of 0 tokens"),
        ("mean-log-prob:scale=log", "no scale of confidence named 'log'"),
        ("mean-log-prob:slope=-1", "slope of confidence is -1.0"),
        ("token-confidence:k=0", "k=0 tokens"),
    ],
)
def test_an_invalid_option_is_named_before_a_model_is_loaded(name, sentence, capsys):
    with pytest.raises((UnknownNameError, ConfigurationError), match=sentence):
        parse_reward(name)
    assert main([*SOLVE, "--reward", name]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.long
def test_the_mean_log_prob_of_a_world_is_that_of_its_texts():
    world = embedded_world("chain", 3, reward="mean-log-prob:scale=raw")
    assert world.settings["reward"] == "mean-log-prob:scale=raw"
    results = world.engine.run(
        samplers.self_consistency(),
        jax.random.key(0),
        world.problems,
        4,
        extract=world.extract,
    )
    encode, policy = world.engine.encode, world.engine.policy
    forward = jax.jit(lambda sequence: policy(sequence[None])[0])
    for problem, result in zip(world.problems, results, strict=True):
        prompt = encode(problem.prompt)
        for n, text in enumerate(result.texts):
            assert not result.particles.truncated[n]
            sequence = np.array([*prompt, *encode(text), *policy.config.eos_ids])
            padded = np.pad(sequence, (0, 100 - len(sequence)))
            log_p = np.asarray(jax.nn.log_softmax(forward(padded)))
            places = np.arange(len(prompt), len(sequence))
            mean = log_p[places - 1, sequence[places]].mean()
            odds = math.log(result.rewards[n] / (1 - result.rewards[n]))
            assert odds == pytest.approx(mean, abs=1e-4)
        assert result.ledger.reward_tokens == 0


@pytest.mark.long
def test_scale_runs_by_confidence_and_charges_no_reward_tokens(tmp_path, capsys):
    for number, name in enumerate(("self-certainty:last=8", "tail-entropy")):
        out = tmp_path / str(number)
        command = ["scale", "--num-problems", "2", "--budgets", "4", "--no-progress"]
        command += ["--methods", "smc", "best_of_n", "--out", str(out)]
        assert main([*command, "--reward", name]) == 0
        rows = read_rows(out / "rows.jsonl")
        assert len(rows) == 4
        for row in rows.values():
            assert row["settings"]["reward"] == name
            assert row["settings"]["reward_sha256"] is None
            assert row["reward_tokens"] == 0
            assert np.isfinite(row["flops"])
    capsys.readouterr()
