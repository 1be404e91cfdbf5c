"""A service without models for the tests of `tsi serve`: results are drawn at once."""

import contextlib
import json
import threading
import time

from fake_world import FakeEngine, fake_world
from processes import LONGEST, free_port
from small_checkpoints import bpe_tokenizer
from starlette.testclient import TestClient

from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.serving.app import make_app
from tsi.experiments.serving.chat_request import Offer
from tsi.experiments.serving.engine_worker import EngineWorker
from tsi.experiments.serving.limits import Limits
from tsi.experiments.serving.run_server import Server
from tsi.experiments.serving.service import make_service
from tsi.experiments.worlds.chosen_task import choose_questions

MODEL = "fake"
HOST = "http://127.0.0.1"


class GatedEngine(FakeEngine):
    """Runs wait for a gate, and tell of progress meanwhile.

    Attributes:
        gate: open unless a test closes it.
        fails: errors of the next runs; None for a run that has none.
        settings, prompts: of the runs.
        num_progress: how often the runs have told of their progress.
    """

    def __init__(self):
        super().__init__(rows=64)
        self.gate = threading.Event()
        self.gate.set()
        self.fails, self.settings, self.prompts = [], [], []
        self.num_progress = 0

    def check(self, problems):
        pass

    def run(self, sampler, key, problems, num_particles, *, progress=None, **settings):
        self.settings.append(settings)
        self.prompts.append([problem.prompt for problem in problems])
        while not self.gate.wait(0.01):
            progress(None)
            self.num_progress += 1
        error = self.fails.pop(0) if self.fails else None
        if error is not None:
            # An error, or a function of the problems that makes it.
            raise error(problems) if callable(error) else error
        return super().run(sampler, key, problems, num_particles, **settings)


class Served:
    """A service with a gated engine, and its parts."""

    def __init__(self, *, bearer=None, hosts=None, policy=None, **limits):
        self.engine = GatedEngine()
        self.limits = Limits(**limits)
        world = fake_world()._replace(engine=self.engine, tokenizer=bpe_tokenizer())
        task = choose_questions(ProblemOptions(), "any", has_policy=True)
        offer = Offer(MODEL, "smc", 4, self.limits.max_budget, policy or {})
        self.service = make_service(world, task, offer, self.limits)
        self.worker = EngineWorker(world, self.limits.max_concurrent)
        self.app = make_app(self.service, self.worker, bearer=bearer, hosts=hosts)

    def client(self):
        """A client; as a context it starts and stops the engine's thread."""
        return TestClient(self.app, base_url=HOST)


def question(text="How many?", **fields):
    """The fields of a request."""
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, **fields}


def chat(client, fields, **options):
    return client.post("/v1/chat/completions", json=fields, **options)


def events_of(text):
    """The JSON objects of a stream; its comments and its end are left out."""
    lines = [line for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def wait_until(condition):
    until = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@contextlib.contextmanager
def listening(served, **settings):
    """The port of a real server in a thread of this process, and the server."""
    import uvicorn

    port = free_port()
    config = uvicorn.Config(
        served.app,
        port=port,
        loop="asyncio",
        http="h11",
        lifespan="on",
        log_config=None,
        timeout_graceful_shutdown=1,
        **settings,
    )
    server = Server(config, served.worker, lambda: None, 0.1)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert thread.is_alive()
        yield port, server
    finally:
        server.should_exit = True
        thread.join(LONGEST)
    assert not thread.is_alive()
