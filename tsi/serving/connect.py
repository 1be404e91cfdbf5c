"""Connect to the policy at the address of a server."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tsi.errors import ConfigurationError, ServerError
from tsi.models.tokens.spelling import Spelling
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.serving.address import parse_address, server_key
from tsi.serving.client import Client, Patience
from tsi.serving.http_replies import TransientError, ask_for
from tsi.serving.identify import Identity, identify
from tsi.serving.known_fields import fit_fields
from tsi.serving.policy import ServedPolicy
from tsi.serving.probe import measure
from tsi.serving.spelling import ServerTokenizer, TextSpelling

PROBE = "1"
"""The prompt of the measurements."""
PROBE_ANSWER = "12"


def connect(
    address: str,
    *,
    tokenizer: Tokenizer | None = None,
    switches: Mapping[str, Any] = MappingProxyType({}),
    together: bool = False,
    patience: Patience = Patience(),  # noqa: B008
) -> ServedPolicy:
    """The policy at an address, with what its server can do.

    Args:
        address: ``URL`` or ``URL#MODEL``.
        tokenizer: the policy's tokenizer, if this machine has it; None uses the
            server's.
        switches: variables of the server's chat template, of JSON types; a tokenizer of
            this machine has its own
            (:func:`tsi.models.loading.load_tokenizer.load_tokenizer`).
        together: see :class:`tsi.serving.policy.ServedPolicy`.
        patience: how long to wait for the server.

    Raises:
        ConfigurationError: the address is malformed; or the server offers no tokenizer
            and none is given; or no chat template of the server reads a switch.
        ServerError: the server cannot be reached, refuses, or sends an invalid answer.
        UnknownNameError: the server does not have the model.
    """
    client = Client(parse_address(address), server_key(), patience)
    try:
        identity = client.call(identify(client))
        spelling = spelling_of(client, identity, tokenizer, switches)
        prompt = spelling.encode_prompt(PROBE)
        text = spelling.encode(PROBE_ANSWER)
        identity = client.call(fit_fields(client, identity, prompt))
        abilities = client.call(measure(client, identity, prompt, text))
    except BaseException:
        client.close()
        raise
    return ServedPolicy(
        client, identity.dialect, abilities, spelling, together, text[-1]
    )


def spelling_of(
    client: Client,
    identity: Identity,
    tokenizer: Tokenizer | None,
    switches: Mapping[str, Any] = MappingProxyType({}),
) -> Spelling:
    """The spelling of prompts for a server; arguments as of `connect`.

    Raises:
        ConfigurationError: see `connect`.
    """
    dialect = identity.dialect
    name = identity.model or client.address.url
    if switches and (tokenizer is not None or not dialect.takes_ids):
        raise ConfigurationError(
            f"{', '.join(switches)} cannot be set in a chat template of {name}: the "
            "prompts are rendered on this machine, by the tokenizer that is given. Set "
            "the variables there (load_tokenizer with switches; --served-tokenizer "
            "with --template-switch)."
        )
    if not dialect.takes_ids:
        # Servers that take text add the beginning-of-sequence token themselves.
        return TextSpelling(tokenizer, True, name)
    if tokenizer is not None:
        return tokenizer
    if dialect.name == "SGLang":
        raise ConfigurationError(
            f"{identity.server} at {client.address.url} takes token ids; name the "
            "policy's tokenizer, a folder or hub id (--served-tokenizer)."
        )
    chat = identity.chat
    if chat is None:
        chat = client.call(has_template(client, identity.model))
    return ServerTokenizer(client, dialect.name, identity.model, chat, switches)


async def has_template(client: Client, model: str | None) -> bool:
    """Whether vLLM's model has a chat template.

    Raises:
        TransientError: the server has been busy or away for too long to tell.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROBE}],
        "add_generation_prompt": True,
    }
    try:
        await ask_for(functools.partial(client.post, "/tokenize", body))
    except TransientError:
        # A chat model must not be asked as a base model because its server is busy.
        raise
    except ServerError:
        return False
    return True
