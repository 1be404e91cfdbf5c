"""Measures what a server can do, and what its numbers mean.

A few short steps are drawn after a short prompt. Log-probabilities are compared between
temperatures, to see whether they are of the model or of the distribution that is drawn
from. Seeds are used twice.

That no truncation applies unasked is seen by frequencies. Of K drawn tokens let S be
the different ones and f1 the number of those that were drawn once. The probability of
what was not drawn is about f1 / K (Good 1953), so that the model's probability of S is
about 1 - f1 / K. A server that draws from a part of the vocabulary with probability Z
has Z times that.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tsi.errors import ServerError
from tsi.serving.abilities import Abilities, Meaning
from tsi.serving.client import Client, TransientError
from tsi.serving.dialect import Dialect, Drawing
from tsi.serving.identify import Identity
from tsi.serving.step import Controls, ServedStep, StepRequest

NUM_DRAWS = 192
"""Tokens that are drawn to see frequencies."""
NUM_COMPARED = 24
"""Tokens that are drawn at another temperature."""
MAX_MISSING = 0.1
"""Fraction of these tokens whose log-probability a server may leave out."""
SEED_TOKENS = 8


async def measure(
    client: Client, identity: Identity, prompt: Sequence[int], text: Sequence[int]
) -> Abilities:
    """What a server can do.

    Args:
        client: of the server.
        identity: of the server.
        prompt: a short prompt: ids, or code points.
        text: a few ids that may follow it.

    Raises:
        ServerError: it does not draw tokens as it is asked to.
    """
    dialect, prefix = identity.dialect, tuple(prompt)
    plain = Drawing(identity.model, Controls(), ())

    async def draw(seed: int, tokens: int, drawing: Drawing) -> ServedStep:
        requests = [StepRequest(prefix, tokens, seed)]
        return await draw_steps(client, dialect, requests, drawing)

    first = await draw(1, SEED_TOKENS, plain)
    again, *others = await asyncio.gather(
        *(draw(seed, SEED_TOKENS, plain) for seed in (1, 2, 3, 4))
    )
    seeds = first.tokens == again.tokens and any(
        other.tokens != first.tokens for other in others
    )
    abilities = Abilities(
        identity.server,
        identity.model,
        identity.models,
        identity.context,
        takes_ids=dialect.takes_ids,
        seeds=seeds,
        reuses_prompts=max(again.cached_tokens, *(o.cached_tokens for o in others)) > 0,
        num_weights=identity.num_weights,
    )
    if not dialect.takes_ids:
        return abilities

    async def draw_tokens(first_seed: int, count: int, drawing: Drawing) -> list[Any]:
        seeds = range(first_seed, first_seed + count)
        return await asyncio.gather(
            *(draw(seed, 1, drawing) for seed in seeds), return_exceptions=True
        )

    drawn, missing = with_log_probs(
        await draw_tokens(100, NUM_DRAWS, plain._replace(log_probs=True))
    )
    if missing > MAX_MISSING * NUM_DRAWS:
        return abilities
    at_one = {step.tokens: step.log_prob for step in drawn}
    half = plain._replace(controls=Controls(temperature=0.5), log_probs=True)
    sharp, _ = with_log_probs(await draw_tokens(500, NUM_COMPARED, half))
    abilities = abilities._replace(
        log_probs=meaning_of(at_one, sharp), draws_all=kept_mass_is_one(drawn, missing)
    )
    given = await read_given(client, dialect, identity.model, [*prefix, *text])
    if given is None:
        return abilities
    # A number for a token that was drawn as well must be the same.
    both = [
        (known, value)
        for tokens, known in at_one.items()
        if len(tokens) == 1 and tokens == tuple(text[:1])
        for value in given[len(prefix) - 1 : len(prefix)]
    ]
    agree = all(abs(a - b) < 0.05 for a, b in both)
    return abilities._replace(reads_prompts=agree)


async def draw_steps(
    client: Client,
    dialect: Dialect,
    requests: Sequence[StepRequest],
    drawing: Drawing,
) -> ServedStep:
    """The first step of one request over HTTP."""
    call = dialect.call(requests, drawing)
    if call.streamed:
        reply = await client.events(call.path, call.body, call.enough)
    else:
        reply = await client.post(call.path, call.body)
    return dialect.steps(reply, requests, drawing)[0]


def with_log_probs(found: Sequence[Any]) -> tuple[list[ServedStep], int]:
    """The steps among steps and errors, and the number of errors of the server.

    llama.cpp's server gives no log-probability of a token that is a part of a
    character; see :mod:`tsi.serving.llama_cpp`.

    Raises:
        TransientError: the server has failed for too long.
    """
    steps = [item for item in found if isinstance(item, ServedStep)]
    for error in found:
        if isinstance(error, BaseException) and (
            isinstance(error, TransientError) or not isinstance(error, ServerError)
        ):
            raise error
    return steps, len(found) - len(steps)


async def read_given(
    client: Client, dialect: Dialect, model: str | None, tokens: Sequence[int]
) -> list[float] | None:
    """Log-probabilities of given ids; None if the server does not give them."""
    call = dialect.reading(tokens, model)
    if call is None:
        return None
    try:
        reply = await client.post(call.path, call.body, patient=False)
        return dialect.log_probs(reply, tokens)
    except ServerError:
        return None


def meaning_of(
    at_one: dict[tuple[int, ...], float], sharp: Sequence[ServedStep]
) -> Meaning:
    """What log-probabilities mean, from those of the same tokens at temperature 1/2.

    Args:
        at_one: of tokens at temperature 1.
        sharp: steps of one token at temperature 1/2.
    """
    pairs = [(at_one[s.tokens], s.log_prob) for s in sharp if s.tokens in at_one]
    if any(math.isnan(b) for _, b in pairs):
        return "none"
    moved = [abs(a - b) for a, b in pairs if a < -1e-3]
    if not moved:
        return "unknown"
    return "processed" if max(moved) > 0.02 else "raw"


def kept_mass_is_one(drawn: Sequence[ServedStep], missing: int = 0) -> bool | None:
    """Whether tokens are drawn from the whole vocabulary; see the module's text.

    Args:
        drawn: steps of one token.
        missing: further ones, of which neither token nor log-probability is known.

    Returns:
        None where the most likely tokens have nearly all of the probability, so that a
        truncation would not be seen.
    """
    counts = Counter(step.tokens for step in drawn)
    log_probs = {step.tokens: step.log_prob for step in drawn}
    ones = sum(count == 1 for count in counts.values())
    twos = sum(count == 2 for count in counts.values())
    total = len(drawn) + missing
    if len(counts) < 3 or any(math.isnan(x) for x in log_probs.values()):
        return None
    covered = sum(map(math.exp, log_probs.values())) + missing / total
    error = math.sqrt(ones + 2 * twos + 1) / total
    return covered > 1 - ones / total - max(4 * error, 0.02)
