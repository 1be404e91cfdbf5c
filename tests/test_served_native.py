"""The same weights behind a server and in this process: the same answers."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scripted_server import ScriptedServer
from small_checkpoints import small_config, small_model

import tsi
from tsi import rewards, samplers
from tsi.loading.policy import Policy
from tsi.models.tokens.char_tokenizer import char_tokenizer
from tsi.samplers.parts import potentials
from tsi.serving.connect import connect
from tsi.serving.engine import ServedEngine
from tsi.serving.scorer import HostScorer

ALPHABET = "12+\n"
TO_MODEL = np.asarray([0, 2, 3, 4, 5, 1])
"""Ids of the model for the server's <s>, 1, 2, +, newline and </s>; <s> stands for the
padding, which has no text either."""
LIMITS = tsi.SolutionLimits(max_steps=3, max_step_tokens=3, max_tokens=7)
ROOM = 16
SAMPLER = samplers.smc(potential=potentials.telescoping())


def small_policy() -> Policy:
    config = small_config(vocab_size=6, num_layers=2, max_length=ROOM)
    tokenizer = char_tokenizer(ALPHABET)
    return Policy("small", Path("small"), small_model(config), tokenizer)


def log_odds(question: str, text: str, ended: bool) -> float:
    del question, ended
    return 0.7 * text.count("1") - 0.4 * text.count("2")


def extract(text: str) -> str | None:
    digits = [letter for letter in text if letter in "12"]
    return "".join(digits[-2:]) or None


def next_of_model(policy: Policy) -> Any:
    """Next-token probabilities in the server's ids, each prefix computed once."""

    @jax.jit
    def probabilities(model: Any, tokens: jax.Array, length: jax.Array) -> jax.Array:
        valid = jnp.arange(ROOM)[None] < length
        hidden, _ = model.trunk(tokens[None], jnp.arange(ROOM)[None], valid)
        return jax.nn.softmax(model.logits(hidden[0, length - 1]))

    @functools.lru_cache(None)
    def next_of(tokens: tuple[int, ...]) -> np.ndarray:
        own = TO_MODEL[np.asarray(tokens)]
        padded = jnp.asarray(np.pad(own, (0, ROOM - len(own))))
        p = np.asarray(probabilities(policy.model, padded, len(own)), np.float64)
        # The server's two line ends as one token are no token of the model.
        row = np.append(p[TO_MODEL], 0.0)
        return row / row.sum()

    return next_of


class ModelSpelling:
    """The server's ids, in which a prompt begins with no token of its own."""

    name, chat_template, eos_ids, add_bos, bos_id = "small", None, (5,), False, None

    def encode(self, text: str) -> list[int]:
        return [1 + ALPHABET.index(letter) for letter in text]

    def encode_chat(self, messages: Any) -> list[int]:
        return self.encode(messages[-1]["content"])

    encode_prompt = encode

    def decode(self, ids: Any) -> str:
        return "".join(ALPHABET[id - 1] for id in ids if 1 <= id <= len(ALPHABET))


def results_here(
    policy: Policy, sampler: Any, problems: list[tsi.Problem], n: int
) -> list[Any]:
    reward = rewards.Verifier(log_odds, policy.tokenizer.decode)
    engine = tsi.reasoning_engine(
        policy, reward, LIMITS, delimiters=["\n"], max_rows=512
    )
    return engine.run(sampler, jax.random.key(1), problems, n, extract=extract)


def results_over_server(
    policy: Policy, sampler: Any, problems: list[tsi.Problem], n: int
) -> list[Any]:
    with ScriptedServer("llama.cpp") as server:
        served = connect(server.url)
        server.next_of = next_of_model(policy)
        served = dataclasses.replace(served, spelling=ModelSpelling())
        scorer = HostScorer(rewards.Verifier(log_odds, served.spelling.decode))
        engine = ServedEngine(served, scorer, LIMITS, delimiters=["\n"])
        return engine.run(sampler, jax.random.key(2), problems, n, extract=extract)


def agree(here: list[str], there: list[str]) -> bool:
    """Whether two samples are of one distribution, by a chi-square test."""
    names = sorted({*here, *there})
    counts = np.asarray([[own.count(name) for name in names] for own in (here, there)])
    # Rare values are counted together.
    rare = counts.sum(0) < 10
    table = np.column_stack([counts[:, ~rare], counts[:, rare].sum(1)])
    table = table[:, table.sum(0) > 0]
    assert table.shape[1] >= 4
    return stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.long
def test_rollouts_over_a_server_are_those_of_the_same_weights_here():
    policy, sampler = small_policy(), samplers.best_of_n()
    problems = [tsi.Problem(i, "1", "") for i in range(120)]
    # Rollouts are independent, so that all their texts count.
    here, there = (
        [text for result in run(policy, sampler, problems, 16) for text in result.texts]
        for run in (results_here, results_over_server)
    )
    assert agree([text[:3] for text in here], [text[:3] for text in there])


@pytest.mark.slow
def test_answers_over_a_server_are_those_of_the_same_weights_here():
    policy = small_policy()
    problems = [tsi.Problem(i, "1", "") for i in range(2000)]
    here, there = (
        [str(result.selected) for result in run(policy, SAMPLER, problems, 4)]
        for run in (results_here, results_over_server)
    )
    assert agree(here, there)
