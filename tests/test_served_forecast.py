"""What a run over a server would read and cost, before it starts."""

import pytest
from scripted_server import ScriptedServer
from test_served_power import run, world_over

from tsi.experiments.forecasts.served_forecast import forecast_served_runs, reading_of
from tsi.experiments.forecasts.token_bounds import Reading, tokens_read
from tsi.rewards.self_judge import SelfJudge
from tsi.serving.prices import Prices
from tsi.serving.served_judge import ServedJudge


@pytest.mark.parametrize(
    ("reading", "sent", "judged"),
    [
        # 2 problems, 12 steps of 5 tokens after a mean of 10, prompts of 100.
        (Reading(100.0, True), 200, 0),
        (Reading(100.0, False), 12 * 110, 0),
        (Reading(100.0, True, 20, True), 200, 12 * 25),
        (Reading(100.0, True, 20, True, True), 200, 200 + 12 * 25),
        (Reading(100.0, True, 20, False), 200, 12 * 135),
        (Reading(100.0, True, 20, False, True), 200, 12 * 135),
        (Reading(100.0, False, 0, False), 12 * 110, 12 * 115),
    ],
)
def test_tokens_that_are_read(reading, sent, judged):
    assert tokens_read(reading, 2, 12, 10.0, 5.0) == (sent, judged)


def numbers_of(table):
    return [
        [cell.strip().replace(",", "") for cell in line.split("|")[2:-1]]
        for line in table.splitlines()[2:]
    ]


def common_length(a, b):
    """How many tokens two texts have in common at their beginnings."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def keep_prefixes(server):
    """Let a server find in its cache whatever it has read or written from now on."""
    right, texts = server.answer, []

    def answer(path, body):
        found = right(path, body)
        if path == "/v1/completions":
            prompt = body["prompt"]
            shared = (common_length(prompt, text) for text in texts)
            details = found["usage"]["prompt_tokens_details"]
            details["cached_tokens"] = max(shared, default=0)
            drawn = (choice["token_ids"] for choice in found["choices"])
            texts.extend([*prompt, *tokens] for tokens in drawn)
        return found

    server.answer = answer


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_forecast_bounds_what_a_run_reads(is_cached):
    with ScriptedServer("vLLM") as server:
        server.reports_cache = is_cached
        world = world_over(server, 5, prices=Prices(30000.0, 5000.0))
        engine = world.engine
        assert engine.policy.abilities.reuses_prompts is is_cached
        prompt = len(engine.encode("1"))
        table, line, _ = forecast_served_runs(world, [("smc", 4, 5)])
        (row,) = numbers_of(table)
        # 3 turns of 4 rows, after 0, 3 and 6 tokens.
        most = 5 * prompt if is_cached else 5 * 4 * (3 * prompt + 0 + 3 + 6)
        assert row == ["4", "5", str(5 * 4 * 3), str(5 * 4 * 9), str(most)]
        cost = (30000 * 5 * 4 * 9 + 5000 * most) / 1e6
        assert (
            f"at most {cost:,.2f} at 30000 per million generated and 5000 read" in line
        )
        if is_cached:
            keep_prefixes(server)
        ledgers = [result.ledger for result in run(world, "smc", 4)]
        read = sum(ledger.sent_tokens - ledger.cached_tokens for ledger in ledgers)
        assert 0 < read <= most
        engine.policy.client.close()


def test_what_a_judge_reads_is_counted():
    with ScriptedServer("vLLM") as server:
        world = world_over(server, 5)
        engine = world.engine
        question = SelfJudge((3, 4, 1), 1, 5)
        engine.scorer = ServedJudge(engine.policy, question, engine.encode)
        prompt = len(engine.encode("1"))
        assert reading_of(world) == Reading(prompt, True, 3, True)
        _, line, _ = forecast_served_runs(world, [("best_of_n", 2, 5)])
        # 30 steps; solutions of at most 6 tokens are read once.
        sent = f"{5 * prompt} tokens read to draw steps (beyond its cache) and "
        assert f"{sent}{60 + 90} to judge" in line
        engine.scorer = ServedJudge(
            engine.policy, question, engine.encode, address="http://other"
        )
        _, line, _ = forecast_served_runs(world, [("best_of_n", 2, 5)])
        assert f"{sent}{5 * prompt + 60 + 90} to judge" in line
        engine.policy.client.close()
