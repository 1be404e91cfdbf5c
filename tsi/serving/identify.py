"""Identify the kind of server at an address, and its models."""

from typing import Any, NamedTuple

from tsi.errors import ServerError, UnknownNameError
from tsi.serving.client import Client
from tsi.serving.dialect import Dialect
from tsi.serving.http_replies import TransientError
from tsi.serving.llama_cpp import LlamaCpp
from tsi.serving.reading import field, string
from tsi.serving.sglang import Sglang
from tsi.serving.text_server import TextServer
from tsi.serving.vllm import Vllm

MAX_MODELS = 1000
MAX_COPIES = 64
MAX_COUNT = 10**16


class Identity(NamedTuple):
    """A server and the model that is used.

    Attributes:
        dialect: its protocol.
        server: kind and version.
        model: the model's name; None if the server has no list.
        models: names of all models.
        context: positions of a prompt and its solution; None if not known.
        num_weights: number of weights of the model; None if not known.
        chat: whether the model has a chat template; None if not known.
        slots: number of requests that the server processes in parallel; None if not
            known.
        copies: maximum number of steps of one prefix per request.
    """

    dialect: Dialect
    server: str
    model: str | None
    models: tuple[str, ...]
    context: int | None = None
    num_weights: float | None = None
    chat: bool | None = None
    slots: int | None = None
    copies: int = MAX_COPIES


async def identify(client: Client) -> Identity:
    """Ask a server what it is.

    Raises:
        ServerError: it does not answer, or not as an inference server.
        UnknownNameError: it does not have the model of the client's address.
    """
    models = await list_models(client)
    model = client.address.model
    names = tuple(entry["id"] for entry in models)
    if model is not None and model not in names:
        raise UnknownNameError(f"model at {client.address.url}", model, names)
    model_fields = next((e for e in models if e["id"] == model), models[0])
    meta = model_fields.get("meta")
    weights = (
        positive_integer_or_none(meta.get("n_params"))
        if isinstance(meta, dict)
        else None
    )
    identity = Identity(
        TextServer(),
        "a server with OpenAI's completions endpoint",
        model_fields["id"],
        names,
        context=positive_integer_or_none(model_fields.get("max_model_len")),
        num_weights=None if weights is None else float(weights),
    )
    props = await try_get(client, "/props")
    if isinstance(props, dict) and "default_generation_settings" in props:
        settings = props["default_generation_settings"]
        settings = settings if isinstance(settings, dict) else {}
        slots = positive_integer_or_none(props.get("total_slots"))
        return identity._replace(
            dialect=LlamaCpp(),
            server=f"llama.cpp {props.get('build_info', '')!s:.40}".strip(),
            context=positive_integer_or_none(settings.get("n_ctx")),
            chat=bool(props.get("chat_template")),
            slots=slots,
            # llama.cpp's server refuses more copies than it has slots.
            copies=min(slots or 1, MAX_COPIES),
        )
    info = await try_get(client, "/get_model_info")
    if isinstance(info, dict) and "model_path" in info:
        server = await try_get(client, "/server_info") or {}
        version = server.get("version", "") if isinstance(server, dict) else ""
        return identity._replace(
            dialect=Sglang(), server=f"SGLang {version!s:.40}".strip()
        )
    version = await try_get(client, "/version")
    if isinstance(version, dict) and "version" in version:
        return identity._replace(
            dialect=Vllm(), server=f"vLLM {version['version']!s:.40}".strip()
        )
    return identity


async def list_models(client: Client) -> list[dict[str, Any]]:
    """The models of a server, each with its name as ``id``.

    Raises:
        ServerError: it does not answer, or has none.
    """
    reply = await client.get("/v1/models", patient=False)
    entries = field(reply, "data")
    if not isinstance(entries, list) or not entries:
        raise ServerError(
            f"{client.address.url} lists no models under /v1/models; is it an "
            "inference server?"
        )
    return [
        {"id": string(field(entry, "id"), "name of a model", 500)}
        | {name: value for name, value in entry.items() if name != "id"}
        for entry in entries[:MAX_MODELS]
    ]


async def try_get(client: Client, path: str) -> Any:
    """The JSON under a path; None if the server does not have it.

    Raises:
        TransientError: it is overloaded, or gone, so that this cannot be known.
    """
    try:
        return await client.get(path, patient=False)
    except TransientError as error:
        if error.is_permanent:
            return None
        raise
    except ServerError:
        return None


def positive_integer_or_none(value: Any) -> Any:
    """A positive integer of plausible size; None for anything else."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and 0 < value < MAX_COUNT else None
