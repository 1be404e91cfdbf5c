"""Rows in work over a server that keeps the prefix of each in a slot."""

import subprocess
import sys

import jax
import pytest
from scripted_server import ScriptedServer
from served_faults import LIMITS, PROBLEMS, SMC, engine_over, numbers, policy_of, run

from tsi.problem import Problem
from tsi.rewards.self_judge import SelfJudge
from tsi.serving.connect import connect
from tsi.serving.engine import ServedEngine
from tsi.serving.served_judge import ServedJudge
from tsi.serving.step import StepRequest

SLOTS = 4


@pytest.fixture(scope="module")
def server():
    with ScriptedServer("llama.cpp") as server:
        yield server


def test_slots_are_what_the_server_says(server):
    policy = connect(server.url)
    assert policy.abilities.slots == SLOTS
    assert engine_over(policy).max_rows == SLOTS
    policy.client.close()


@pytest.mark.parametrize(("slots", "problems"), [(None, 32), (64, 16), (9, 2), (3, 1)])
def test_no_more_rows_are_in_work_than_there_are_slots(server, slots, problems):
    policy = policy_of(server, slots=slots)
    assert engine_over(policy).problems_at_once(SMC, 4) == problems
    # What a user asks for holds, up to the slots.
    assert engine_over(policy, max_rows=2).problems_at_once(SMC, 4) == 1
    policy.client.close()


def test_results_do_not_depend_on_slots(server):
    policies = [policy_of(server, slots=slots) for slots in (None, 4)]
    few, many = [numbers(run(engine_over(policy))) for policy in policies]
    assert few == many
    assert len(few) == len(PROBLEMS)
    for policy in policies:
        policy.client.close()


def test_a_problem_begins_when_the_slots_of_another_are_free(server, monkeypatch):
    policy = policy_of(server, slots=4)
    engine = engine_over(policy)
    prompts = [tuple(engine.encode(text)) for text in "12+"]
    assert len(set(prompts)) == 3
    working, most = [], []
    draw = type(policy).draw

    async def watch(self, requests, drawing):
        (own,) = {p for p in prompts for r in requests if r.prefix[: len(p)] == p}
        working.append(own)
        most.append(len(set(working)))
        steps = await draw(self, requests, drawing)
        working.remove(own)
        return steps

    monkeypatch.setattr(type(policy), "draw", watch)
    run(engine, SMC, [Problem(i, text, "") for i, text in enumerate("12+")])
    assert max(most) == 1
    policy.client.close()


PREFIXES = [(1,), (1,), (1,), (2,), (3,), (3,), (4,)]
REQUESTS = [StepRequest(prefix, 3, i) for i, prefix in enumerate(PREFIXES)]


def test_the_first_request_of_each_prefix_is_sent_before_others(server):
    policy = policy_of(server, copies=2)
    assert policy.groups(REQUESTS) == [[0, 1], [3], [4, 5], [6], [2]]
    policy.client.close()


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("llama.cpp", [[0], [3], [4], [6], [1], [2], [5]]),
        ("vLLM", [[0, 1, 2], [3], [4, 5], [6]]),
    ],
)
def test_steps_that_are_judged_are_no_copies_where_those_are_forgotten(name, groups):
    with ScriptedServer(name) as server:
        policy = policy_of(server, copies=4)
        assert policy.groups(REQUESTS, judged=True) == groups
        policy.client.close()


def test_a_judges_steps_have_a_request_each(server):
    server.requests.clear()
    policy = policy_of(server, copies=4)
    judge = ServedJudge(policy, SelfJudge((3,), 1, 2), policy.spelling.encode_prompt)
    ServedEngine(policy, judge, LIMITS, delimiters=["\n"]).run(
        SMC, jax.random.key(0), PROBLEMS[:1], 4, extract=lambda text: None
    )
    assert not any("n" in body for _, body in server.requests)
    server.requests.clear()
    run(engine_over(policy), SMC, PROBLEMS[:1])
    assert any(body.get("n") == 4 for _, body in server.requests)
    policy.client.close()


PROGRAM = """
import atexit, sys, threading
from tsi.serving.address import parse_address
from tsi.serving.client import Client
# The functions that are registered first run last.
atexit.register(lambda: print(threading.active_count()))
client = Client(parse_address(sys.argv[1]))
client.call(client.get("/v1/models"))
print("open", flush=True)
"""


def test_a_client_that_nobody_closes_is_closed_with_the_program(server):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, server.url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "open\n1\n", "")
