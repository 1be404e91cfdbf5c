"""The command `tsi serve`: a sampler behind an OpenAI-compatible endpoint."""

import logging
import os
import sys
from pathlib import Path

from tsi.errors import ConfigurationError
from tsi.experiments.commands.forecast_output import print_notes
from tsi.experiments.model_options import ModelOptions, Models, check_positive
from tsi.experiments.problem_options import ProblemOptions, Problems
from tsi.experiments.serving.limits import LOOPBACK, Limits, ServeLimits


def serve(
    problems: Problems = ProblemOptions(),  # noqa: B008
    options: Models = ModelOptions(),  # noqa: B008
    method: str = "smc",
    budget: int = 16,
    host: str = "127.0.0.1",
    port: int = 8000,
    model_name: str | None = None,
    token_file: Path | None = None,
    limits: ServeLimits = Limits(),  # noqa: B008
) -> int:
    """Serve a sampler behind an OpenAI-compatible endpoint.

    With --policy and without --task, any question is answered. Clients must send the
    token of the variable TSI_SERVE_TOKEN or of --token-file, if there is one.

    Args:
        problems: a task or a file, prompt and limits of a solution.
        options: models.
        method: default sampler of requests.
        budget: default number of rollouts N of requests.
        host: address to listen on; by default only programs of this machine can reach
            it.
        port: to listen on; 0 for any free one.
        model_name: the model's name for clients; by default the policy's name.
        token_file: file with the token that clients must send, or a pipe from which it
            is read to its end, such as `<(pass show tsi)` of a shell.
        limits: of requests.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "tsi serve needs starlette and uvicorn; run `pip install -e '.[serve]'`."
        ) from None
    from tsi.experiments.serving.app import make_app
    from tsi.experiments.serving.bearer import hosts_of, read_bearer
    from tsi.experiments.serving.engine_worker import EngineWorker
    from tsi.experiments.serving.load_service import check_name, load_service
    from tsi.experiments.serving.run_server import bind, run_server, url_of

    limits.check()
    check_positive(budget=budget)
    check_name(model_name)
    if not 0 <= port < 2**16:
        raise ConfigurationError(f"port must be between 0 and 65535, not {port}.")
    bearer = read_bearer(token_file)
    listener = bind(host, port)
    with listener:
        service = load_service(
            problems,
            options.world,
            has_policy=options.policy is not None,
            method=method,
            budget=budget,
            model_name=model_name,
            limits=limits,
        )
        print_notes(service.world.notes)
        if bearer is None and host not in LOOPBACK:
            print_notes(["anyone who reaches this address can use it without a token."])
        logging.basicConfig(format="tsi: %(message)s", stream=sys.stderr)
        logging.getLogger("tsi.serve").setLevel(logging.INFO)
        worker = EngineWorker(service.world, limits.max_concurrent)
        url = url_of(host, listener.getsockname()[1])
        offer = service.offer

        def announce() -> None:
            print(f"{offer.model} at {url} ({method}, N = {budget})", flush=True)

        run_server(
            make_app(service, worker, bearer=bearer, hosts=hosts_of(host)),
            listener,
            worker,
            announce,
            max_connections=limits.max_connections,
            grace_seconds=limits.grace_seconds,
        )
        if not worker.join():
            print_notes(["the run did not end in time and is abandoned."])
            # A thread within XLA would make the end of the interpreter a crash.
            sys.stdout.flush()
            os._exit(0)
    return 0
