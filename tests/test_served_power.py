"""Power sampling over a server, where the policy itself proposes."""

import jax
import numpy as np
import pytest
from scripted_chain import EOS, PROBABILITIES, text_of
from scripted_server import ScriptedServer
from test_served_exact import LIMITS

from tsi.errors import CapabilityError
from tsi.experiments.commands.abilities_table import refused_methods
from tsi.experiments.forecasts.served_forecast import refusal_of
from tsi.experiments.plans.methods import METHODS, method_settings
from tsi.experiments.plans.run_method import run_method
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.worlds.chosen_task import choose_questions
from tsi.experiments.worlds.served_world import Served, served_world
from tsi.experiments.worlds.step_ends import StepEnds
from tsi.problem import Problem

KINDS = [("llama.cpp", "raw"), ("vLLM", "raw"), ("vLLM", "processed")]
FIXED = {"power_sampling_released", "power_sampling_printed"}


@pytest.fixture(scope="module", params=KINDS, ids=["-".join(kind) for kind in KINDS])
def server(request):
    with ScriptedServer(*request.param) as server:
        yield server


def world_over(server, number=40, **settings):
    task = choose_questions(ProblemOptions(**LIMITS._asdict()), "1", has_policy=True)
    problems = [Problem(i, "1", "") for i in range(number)]
    ends = StepEnds(delimiters=("\n",))
    price, read_price = settings.pop("prices", (None, None))
    served = Served(server.url, price=price, read_price=read_price)
    settings = {"reward": "none", "ends": ends, **settings}
    return served_world(task, problems, served, **settings)


def run(world, name, size=16):
    return run_method(world, name, jax.random.key(0), world.problems, size)


def evidence(alpha, prompt):
    """Sum of p^alpha over all solutions, those that a limit has cut among them."""

    def grow(tokens, newest, steps, p):
        last = tokens[-1] if tokens else prompt[-1]
        for token, q in enumerate(PROBABILITIES[last]):
            if q == 0:
                continue
            longer, step = (*tokens, token), (*newest, token)
            is_cut = "\n" in text_of(step) or len(step) == LIMITS.max_step_tokens
            count = steps + (is_cut or token == EOS)
            is_full = len(longer) == LIMITS.max_tokens or count == LIMITS.max_steps
            if token == EOS or is_full:
                yield (p * q) ** alpha
            else:
                yield from grow(longer, () if is_cut else step, count, p * q)

    return sum(grow((), (), 0, 1.0))


@pytest.mark.long
@pytest.mark.parametrize("name", ["power_smc", "power_sampling"])
def test_the_policy_proposes_and_the_target_stays_the_same(server, name):
    world = world_over(server)
    results = run(world, name)
    truth = evidence(4.0, world.engine.encode("1"))
    estimates = np.exp([result.log_evidence for result in results])
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert abs(estimates.mean() - truth) < 4 * error
    assert 0 < error < truth / 2
    assert method_settings(name, 3, is_served=True)["proposal_temperature"] == 1.0
    assert method_settings(name, 3)["proposal_temperature"] == 0.25
    world.engine.policy.client.close()


@pytest.mark.parametrize("name", sorted(FIXED))
def test_a_method_with_a_proposal_of_its_own_is_refused(server, name):
    world = world_over(server, 1)
    before = len(server.requests)
    with pytest.raises(CapabilityError, match=r"at temperature 0\.25, and not"):
        run(world, name)
    assert "Use power_sampling" in refusal_of(world, name, 16)
    assert len(server.requests) == before
    power = {found for found in METHODS if found.startswith("power_")}
    assert power & set(refused_methods(world.engine.policy)) == FIXED
    world.engine.policy.client.close()


def test_at_another_temperature_log_p_must_be_of_what_is_drawn(server):
    world = world_over(server, 2, temperature=0.5)
    is_raw = world.engine.policy.abilities.log_probs == "raw"
    if is_raw:
        with pytest.raises(CapabilityError, match="processed_logprobs"):
            run(world, "power_smc", 4)
    else:
        assert len(run(world, "power_smc", 4)) == 2
    assert bool(refusal_of(world, "power_smc", 4)) is is_raw
    world.engine.policy.client.close()


@pytest.mark.parametrize("name", ["smc@0.4", "best_of_n@0.4", "greedy"])
def test_a_reward_of_log_p_needs_numbers_of_the_model(server, name):
    world = world_over(server, 1, reward="mean-log-prob")
    # Raw numbers are of the model at temperature 1, whatever is drawn from.
    if world.engine.policy.abilities.log_probs == "raw":
        assert refusal_of(world, name, 4) == ""
        world.engine.policy.client.close()
        return
    sentence, key = "log p of the model at temperature 1", jax.random.key(0)
    with pytest.raises(CapabilityError, match=sentence):
        run(world, name, 4)
    with pytest.raises(CapabilityError, match=sentence):
        run_method(world, "smc", key, world.problems, 4, temperature=0.4)
    assert sentence in refusal_of(world, name, 4)
    assert refusal_of(world, "smc", 4) == refusal_of(world, "smc@1", 4) == ""
    world.engine.policy.client.close()
