"""Measure what a server can do, and what its numbers mean.

A few short steps are drawn after a short prompt. Log-probabilities are compared between
temperatures, to see whether they belong to the model or to the distribution from which
tokens are drawn. Each seed is used twice: a server that ignores seeds is very unlikely
to repeat the tokens of all of them. A server rounds differently when other requests
share its batch. If the tokens of a few seeds differ, these seeds are therefore used
again several times, without other requests. Frequencies of drawn tokens show whether it
truncates by default (:mod:`tsi.serving.good_turing`).
"""

import asyncio
import functools
import math
from collections.abc import Awaitable, Iterable, Sequence

from tsi.errors import ServerError
from tsi.serving.abilities import Abilities, Meaning
from tsi.serving.client import Client
from tsi.serving.dialect import Dialect, Drawing
from tsi.serving.good_turing import kept_mass_is_one
from tsi.serving.http_replies import TransientError, ask_for
from tsi.serving.identify import Identity
from tsi.serving.step import Controls, ServedStep, StepRequest
from tsi.serving.text_server import TextServer

NUM_DRAWS = 192
"""Number of tokens that are drawn to measure frequencies."""
MAX_FAILED = NUM_DRAWS // 4
NUM_COMPARED = 24
"""Number of tokens that are drawn at another temperature."""
SEEDS = (1, 2, 3, 4, 5, 6)
SEED_TOKENS = 8
MAX_DOUBTS, NUM_ALONE = 2, 4
"""The maximum number of seeds that may have drawn different tokens, and how often each
is used again."""
NUM_COPIES = 4


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
        ServerError: it does not draw tokens as requested.
    """
    dialect, prefix = identity.dialect, tuple(prompt)
    plain_drawing = Drawing(identity.model, Controls(), ())

    async def draw(seed: int, tokens: int, drawing: Drawing) -> ServedStep:
        requests = [StepRequest(prefix, tokens, seed)]
        return await draw_steps(client, dialect, requests, drawing)

    # This request is sent first, so that the others can find its prompt in a cache.
    first = await draw(SEEDS[0], SEED_TOKENS, plain_drawing)
    others = await asyncio.gather(
        *(draw(seed, SEED_TOKENS, plain_drawing) for seed in (*SEEDS[1:], *SEEDS))
    )
    tokens = [step.tokens for step in (first, *others)]
    first_tokens, second_tokens = tokens[: len(SEEDS)], tokens[len(SEEDS) :]
    unstable_seeds = [
        s for s, a, b in zip(SEEDS, first_tokens, second_tokens, strict=True) if a != b
    ]
    repeats = len(set(first_tokens)) > 1 and len(unstable_seeds) <= MAX_DOUBTS
    for seed in unstable_seeds if repeats else ():
        single_draws = [
            await draw(seed, SEED_TOKENS, plain_drawing) for _ in range(NUM_ALONE)
        ]
        repeats = repeats and len({step.tokens for step in single_draws}) == 1
    abilities = Abilities(
        identity.server,
        identity.model,
        identity.models,
        identity.context,
        takes_ids=dialect.takes_ids,
        seeds=repeats,
        reuses_prompts=any(step.cached_tokens for step in others),
        num_weights=identity.num_weights,
        slots=identity.slots,
    )
    if isinstance(dialect, TextServer):
        return abilities._replace(unknown_controls=dialect.unknown_controls)
    if await draws_copies(client, identity, StepRequest(prefix, SEED_TOKENS, SEEDS[0])):
        abilities = abilities._replace(copies=identity.copies)
    draws = await gather_steps(
        draw(seed, 1, plain_drawing._replace(log_probs=True))
        for seed in range(100, 100 + NUM_DRAWS)
    )
    # llama.cpp gives no log-probability for a token that is part of a character.
    failed = NUM_DRAWS - len(draws)
    if failed > MAX_FAILED:
        return abilities
    at_one = {step.tokens: step.log_prob for step in draws}
    half = plain_drawing._replace(controls=Controls(temperature=0.5), log_probs=True)
    half_temperature_draws = await gather_steps(
        draw(seed, 1, half) for seed in range(500, 500 + NUM_COMPARED)
    )
    meaning = meaning_of(at_one, half_temperature_draws)
    abilities = abilities._replace(
        log_probs=meaning, draws_all=kept_mass_is_one(draws, failed)
    )
    prompt_log_probs = await read_given(
        client, dialect, identity.model, [*prefix, *text]
    )
    if prompt_log_probs is None:
        return abilities
    # If a token was also drawn, both numbers must agree.
    pairs = [
        (log_prob, value)
        for tokens, log_prob in at_one.items()
        if len(tokens) == 1 and tokens == tuple(text[:1])
        for value in prompt_log_probs[len(prefix) - 1 : len(prefix)]
    ]
    agree = all(abs(a - b) < 0.05 for a, b in pairs)
    return abilities._replace(reads_prompts=agree)


async def draws_copies(
    client: Client, identity: Identity, request: StepRequest
) -> bool:
    """Whether a seed repeats all steps of a request for several, which differ."""
    count = min(NUM_COPIES, identity.copies)
    if count < 2 or not identity.dialect.copies:
        return False
    drawing = Drawing(identity.model, Controls(), ())
    call = identity.dialect.call([request] * count, drawing)
    try:
        ask = functools.partial(client.post, call.path, call.body)
        replies = [await ask_for(ask) for _ in range(2)]
        first, second = (
            [
                step.tokens
                for step in identity.dialect.steps(reply, [request] * count, drawing)
            ]
            for reply in replies
        )
    except TransientError:
        raise
    except ServerError:
        return False
    return first == second and len(set(first)) > 1


async def gather_steps(draws: Iterable[Awaitable[ServedStep]]) -> list[ServedStep]:
    """The steps of those draws that the server does not refuse.

    Raises:
        TransientError: it has failed for too long.
    """
    answers = await asyncio.gather(*draws, return_exceptions=True)
    for answer in answers:
        refused = isinstance(answer, ServerError)
        if isinstance(answer, TransientError) or not (
            refused or isinstance(answer, ServedStep)
        ):
            raise answer
    return [answer for answer in answers if isinstance(answer, ServedStep)]


async def draw_steps(
    client: Client,
    dialect: Dialect,
    requests: Sequence[StepRequest],
    drawing: Drawing,
    *,
    patient: bool = True,
) -> ServedStep:
    """The first step of one request over HTTP; see `Client.post`."""
    call = dialect.call(requests, drawing)
    if call.streamed:
        reply = await client.events(
            call.path, call.body, call.is_enough, patient=patient
        )
    else:
        reply = await client.post(call.path, call.body, patient=patient)
    return dialect.steps(reply, requests, drawing)[0]


async def read_given(
    client: Client, dialect: Dialect, model: str | None, tokens: Sequence[int]
) -> list[float] | None:
    """Log-probabilities of given ids; None if the server does not give them.

    Raises:
        TransientError: it is busy, or away, so that this cannot be known.
    """
    call = dialect.log_probs_call(tokens, model)
    if call is None:
        return None
    try:
        reply = await client.post(call.path, call.body, patient=False)
        return dialect.log_probs(reply, tokens)
    except TransientError as error:
        if error.is_permanent:
            return None
        raise
    except ServerError:
        return None


def meaning_of(
    at_one: dict[tuple[int, ...], float], sharp: Sequence[ServedStep]
) -> Meaning:
    """The meaning of log-probabilities, from the same tokens at temperature 1/2.

    Args:
        at_one: log-probabilities of tokens drawn at temperature 1.
        sharp: steps of one token, drawn at temperature 1/2.
    """
    pairs = [(at_one[s.tokens], s.log_prob) for s in sharp if s.tokens in at_one]
    if any(math.isnan(b) for _, b in pairs):
        return "none"
    differences = [abs(a - b) for a, b in pairs if a < -1e-3]
    if not differences:
        return "unknown"
    return "processed" if max(differences) > 0.02 else "raw"
