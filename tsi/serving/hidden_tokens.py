"""Tokens of llama.cpp's server that are part of a character, and their log p.

If a character is incomplete after a token, the token is hidden: the stream of the step
has no event for it. The step is therefore requested again with the same seed and
without streaming, which gives the ids of all tokens. Both replies must agree in all
tokens of the stream, in the number of tokens, and in the end. A difference in hidden
tokens alone is not detected. The log-probability of a hidden token is read from the
list of likely tokens after its prefix. The server gives this list only with a token
that it reports, so a bias makes it draw a token that completes its characters. The list
contains the model's own log-probabilities, before the bias.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tsi.errors import CapabilityError, ServerError
from tsi.serving.client import Client
from tsi.serving.dialect import Drawing
from tsi.serving.llama_cpp import LlamaCpp
from tsi.serving.llama_replies import log_prob_of, streamed_step
from tsi.serving.reading import field, integer
from tsi.serving.step import Controls, ServedStep, StepRequest

LISTS = (64, 2**20)
"""Lengths of the requested lists: few tokens at first, then the whole vocabulary."""
REASON = (
    "The policy has drawn a character that takes several tokens, for which llama.cpp's "
    "server gives no log-probabilities. "
)


async def read_hidden_tokens(
    client: Client,
    dialect: LlamaCpp,
    requests: Sequence[StepRequest],
    drawing: Drawing,
    events: Sequence[Any],
    whole: int | None,
) -> list[ServedStep]:
    """The steps of a stream that lacks tokens, with the log p of each step.

    The tokens that are read again to find them are not counted in the ledger.

    Args:
        client: of the server.
        dialect: of the server.
        requests: of the stream.
        drawing: of the run.
        events: of the stream.
        whole: a token with a whole text; None if none is known.

    Raises:
        CapabilityError: the controls truncate or penalise, so that log p needs more
            than the model's own probabilities; rows share a request that has no seed;
            or no token with a whole text is known.
        ServerError: the server draws another step this time, fails or answers nonsense.
    """
    controls, count = drawing.controls, len(requests)
    if controls != Controls(temperature=controls.temperature):
        raise CapabilityError(
            f"{REASON}They can be found only without top-k, top-p, min-p and a "
            "repetition penalty. Leave these out, or use a method that needs no "
            "log-probabilities."
        )
    if len({request.prefix for request in requests}) > 1:
        raise CapabilityError(
            f"{REASON}They can be found only where rows with different prefixes do not "
            "share a request (--served-together)."
        )
    if whole is None:
        raise CapabilityError(
            f"{REASON}They can be found only if a token is known whose text is whole. "
            "Use a method that needs no log-probabilities."
        )
    call = dialect.call(requests, drawing._replace(log_probs=False))
    reply = await client.post(call.path, call.body)
    steps = dialect.steps(reply, requests, drawing._replace(log_probs=False))
    steps_read = []
    for index, (repeated_step, request) in enumerate(zip(steps, requests, strict=True)):
        step, known_tokens, hidden = streamed_step(
            events, index, count, request, drawing
        )
        if not hidden:
            steps_read.append(step)
            continue
        tokens = repeated_step.tokens
        is_same = all(tokens[p : p + 1] == (id,) for p, (id, _) in known_tokens.items())
        if not (
            is_same
            and len(tokens) == len(known_tokens) + hidden
            and repeated_step.end == step.end
        ):
            raise ServerError(
                "llama.cpp's server drew another step for the same seed, so that the "
                "log-probabilities of a character that takes several tokens are not "
                "known. Use a method that needs no log-probabilities."
            )
        log_prob = step.log_prob
        for place in sorted(set(range(len(tokens))) - set(known_tokens)):
            prefix = (*request.prefix, *tokens[:place])
            log_prob += await _log_prob(
                client, dialect, prefix, tokens[place], whole, controls.temperature
            )
        steps_read.append(
            step._replace(tokens=tokens, num_tokens=len(tokens), log_prob=log_prob)
        )
    return steps_read


async def _log_prob(
    client: Client,
    dialect: LlamaCpp,
    prefix: tuple[int, ...],
    token: int,
    whole: int,
    temperature: float,
) -> float:
    """log p of one token after a prefix, at the temperature of a run."""
    if temperature == 0:
        return 0.0
    for size in LISTS if temperature == 1 else LISTS[-1:]:
        call = dialect.likely_tokens_call(prefix, whole, size)
        named = read_list(await client.post(call.path, call.body))
        if token in named:
            return log_prob_at(named, token, temperature)
    raise ServerError(
        f"llama.cpp's server lists {len(named):,} tokens, and not the token {token} "
        "that it drew."
    )


def read_list(reply: Any) -> dict[int, float]:
    """log p of likely tokens, by id, from the reply to `likely_tokens_call`."""
    entries = field(reply, "completion_probabilities", 0, "top_logprobs")
    if not isinstance(entries, list) or len(entries) > LISTS[-1]:
        raise ServerError("The server's list of likely tokens is missing or too long.")
    return {
        integer(field(item, "id"), "token id"): log_prob_of(item) for item in entries
    }


def log_prob_at(named: Mapping[int, float], token: int, temperature: float) -> float:
    """log p of a token at a temperature, from log p of all tokens at temperature 1.

    At temperature 1 the other tokens are not needed.
    """
    if temperature == 1:
        return named[token]
    scaled = np.asarray(list(named.values())) / temperature
    largest = float(scaled.max())
    total = largest + math.log(np.exp(scaled - largest).sum())
    return named[token] / temperature - total
