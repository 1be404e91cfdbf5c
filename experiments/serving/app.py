"""The endpoint as an ASGI application.

GET  /health                  whether the server answers; needs no token
GET  /v1/models               the one model
POST /v1/chat/completions     a question, answered by a sampler
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tsi.experiments.serving.api_error import ApiError
from tsi.experiments.serving.bearer import Bearer
from tsi.experiments.serving.chat_request import ChatRequest, parse_request
from tsi.experiments.serving.completion import (
    KEEP_ALIVE,
    Completion,
    event,
    model_card,
    model_list,
)
from tsi.experiments.serving.engine_worker import FAILED, EngineWorker, Job
from tsi.experiments.serving.guard import HEADERS, Guard, error_response, json_response
from tsi.experiments.serving.json_body import parse_body
from tsi.experiments.serving.read_body import read_body
from tsi.experiments.serving.service import Service

HEALTH, MODELS, CHAT = "/health", "/v1/models", "/v1/chat/completions"
KEEP_ALIVE_SECONDS = 5.0
"""Between two comments of a stream that waits, so that proxies keep it open."""

CLIENT_GONE = 499
"""The status in the log of a request whose client has gone; nobody receives it."""


def make_app(
    service: Service,
    worker: EngineWorker,
    *,
    bearer: Bearer | None = None,
    hosts: frozenset[str] | None = None,
) -> Guard:
    """The application; its lifespan starts and stops the engine's thread.

    Args:
        service: what is served.
        worker: the engine's thread, not started.
        bearer: the token that requests must carry; None for none.
        hosts: names by which the server may be addressed; None for any.
    """

    async def answer_health(request: Request) -> Response:
        return json_response({"status": "ok", "requests": worker.num_open})

    async def answer_models(request: Request) -> Response:
        return json_response(model_list(service.offer.model, service.created))

    async def answer_model(request: Request) -> Response:
        if request.path_params["model"] != service.offer.model:
            raise ApiError(
                f"This server has the model {service.offer.model!r} only.",
                404,
                param="model",
                code="model_not_found",
            )
        return json_response(model_card(service.offer.model, service.created))

    async def answer_chat(request: Request) -> Response:
        limits = service.limits
        body = await read_body(request, limits.body_bytes, limits.body_seconds)
        chat = parse_request(parse_body(body), service.offer)
        worker.check_room()
        problem, completion = await run_in_threadpool(service.prepare, chat)
        job = service.make_job(chat, problem)
        worker.submit(job)
        if chat.stream:
            events = stream_events(worker, job, completion, chat)
            return StreamingResponse(
                events, media_type="text/event-stream", headers=HEADERS
            )
        try:
            winner, extension = await wait_for(job, request)
        finally:
            worker.cancel(job)
        return json_response(completion.response(winner, extension))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    app = Starlette(
        routes=[
            Route(HEALTH, answer_health),
            Route(MODELS, answer_models),
            Route(MODELS + "/{model:path}", answer_model),
            Route(CHAT, answer_chat, methods=["POST"]),
        ],
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_error,
            ClientDisconnect: _answer_disconnect,
            Exception: _answer_exception,
        },
        lifespan=lifespan,
    )
    routes = frozenset({HEALTH, MODELS, CHAT})
    return Guard(app, bearer, hosts, frozenset({HEALTH}), routes)


async def wait_for(job: Job, request: Request) -> Any:
    """The value of a job.

    Raises:
        ApiError: it is refused or has failed.
        ClientDisconnect: nobody waits for it any more.
    """
    disconnection = asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait(
            {job.future, disconnection}, return_when=asyncio.FIRST_COMPLETED
        )
        if not job.future.done():
            raise ClientDisconnect
        return job.future.result()
    finally:
        disconnection.cancel()


async def stream_events(
    worker: EngineWorker, job: Job, completion: Completion, chat: ChatRequest
) -> AsyncIterator[bytes]:
    """The events of a response: comments while it is computed, then the text."""
    try:
        yield completion.first_event()
        while not job.future.done():
            await asyncio.wait({job.future}, timeout=KEEP_ALIVE_SECONDS)
            if not job.future.done():
                yield KEEP_ALIVE
        try:
            winner, extension = job.future.result()
        except ApiError as error:
            # The status was sent before the computation began.
            yield event(error.body())
            return
        for data in completion.events(
            winner, extension, include_usage=chat.include_usage
        ):
            yield data
    finally:
        worker.cancel(job)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"The request is refused: {error.detail}."
    if error.status_code == 404:
        sentence = (
            f"There is nothing here; the paths are {HEALTH}, {MODELS} and {CHAT}."
        )
    headers = dict(error.headers or {})
    return error_response(ApiError(sentence, error.status_code, headers=headers))


async def _answer_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _answer_exception(request: Request, error: Exception) -> Response:
    return error_response(ApiError(FAILED, 500))
