"""Rows in work over a server that keeps the prefix of each in a slot."""

import subprocess
import sys

import pytest
from scripted_server import ScriptedServer
from served_faults import PROBLEMS, SMC, engine_over, numbers, policy_of, run

from tsi.problem import Problem
from tsi.serving.connect import connect
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


def test_rows_that_go_on_alone_are_sent_first(server):
    policy = policy_of(server, copies=4)
    prefixes = [(1,), (1,), (1,), (2,), (3,), (3,), (4,)]
    requests = [StepRequest(p, 3, i) for i, p in enumerate(prefixes)]
    assert policy.groups(requests) == [[3], [6], [4, 5], [0, 1, 2]]
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
