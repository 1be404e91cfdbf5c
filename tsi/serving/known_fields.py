"""Find out whether a text server refuses fields that OpenAI's interface does not have.

Servers that know top-k, min-p and a repetition penalty have defaults for them, so these
fields are always sent. A strict server, such as OpenAI's own, refuses a request with a
field that it does not know. Such a field has no default there and is left out. A server
may know some of them, so if it refuses a request with all, it is asked with each alone.
"""

import functools
import re
from collections.abc import Sequence

from tsi.errors import ServerError
from tsi.serving.client import Client
from tsi.serving.dialect import Drawing
from tsi.serving.http_replies import TransientError, ask_for
from tsi.serving.identify import Identity
from tsi.serving.probe import draw_steps
from tsi.serving.step import Controls, StepRequest
from tsi.serving.text_server import EXTENSIONS, TextServer

UNKNOWN = re.compile(
    r"unrecogni[sz]ed|unknown|unexpected|unsupported param|not permitted"
    r"|extra[_ ](input|field|forbidden)|additional propert",
    re.IGNORECASE,
)
"""How servers say that they do not know a field. A server that knows the field and
refuses its value may have a default for it, which would then apply."""


async def fit_fields(
    client: Client, identity: Identity, prompt: Sequence[int]
) -> Identity:
    """The identity of a server, with a dialect that sends no field it does not know.

    Args:
        client: of the server.
        identity: of the server.
        prompt: a short prompt, in code points.

    Raises:
        ServerError: the server refuses the request for another reason.
    """
    if not isinstance(identity.dialect, TextServer):
        return identity
    requests = [StepRequest(tuple(prompt), 1, 1)]
    drawing = Drawing(identity.model, Controls(), ())
    if await takes_fields(client, identity.dialect, requests, drawing):
        return identity
    known_names = [
        name
        for name in EXTENSIONS
        if await takes_fields(client, TextServer([name]), requests, drawing)
    ]
    dialect = TextServer(known_names)
    await draw_steps(client, dialect, requests, drawing)
    return identity._replace(dialect=dialect)


async def takes_fields(
    client: Client,
    dialect: TextServer,
    requests: Sequence[StepRequest],
    drawing: Drawing,
) -> bool:
    """Whether a server knows all fields that a dialect sends.

    Raises:
        ServerError: the server refuses the request for another reason.
    """
    try:
        await ask_for(functools.partial(draw_steps, client, dialect, requests, drawing))
    except TransientError:
        raise
    except ServerError as error:
        if not UNKNOWN.search(str(error)):
            raise
        return False
    return True
