"""What a run says while it goes on."""

import re

from fake_world import FakeEngine, fake_world

from tsi.engine.meters.report import Totals
from tsi.experiments.plans.plan import batches, make_plan
from tsi.experiments.scaling.progress import describe_batch
from tsi.experiments.scaling.scale import run_plan


def describe_progress(methods, budgets, rows=400):
    plan = make_plan(methods, budgets, 1)
    return [describe_batch(batch) for batch in batches(plan, fake_world(2, rows=rows))]


def test_a_batch_is_named_after_the_methods_that_were_asked_for():
    # Its rollouts are those of weighted best-of-N, which nobody asked for.
    assert describe_progress(["self_consistency"], [2]) == [
        "self-consistency, N = 2, seed 0"
    ]
    assert describe_progress(["best_of_n", "smc"], [1, 4]) == [
        "best-of-N, N = 1-4, seed 0",
        "SMC, N = 1, seed 0",
        "SMC, N = 4, seed 0",
    ]
    independent = ["self_consistency", "best_of_n", "weighted_best_of_n"]
    assert describe_progress(independent, [2]) == [
        "self-consistency and 2 more, N = 2, seed 0"
    ]


def test_the_bar_counts_cells_and_tokens_and_the_cost_is_measured(tmp_path, capsys):
    plan = make_plan(["self_consistency", "smc"], [1, 4], 1)
    world = fake_world(6, rows=8)
    run_plan(plan, world, tmp_path / "rows.jsonl", progress=True)
    told = capsys.readouterr().err
    assert "weighted" not in told
    assert re.search(r"SMC, N = 4, seed 0: 24/24 cells, [\d,]+ tokens/s 100%", told)
    assert re.search(r"\d left", told)
    # No worked solution says how long a solution is.
    (measured,) = re.findall("measured on .*", told)
    # Twice two problems of four; six of four, and six of one and of four by SMC.
    assert int(re.search(r"first (\d+) rollouts: ", measured).group(1)) in (16, 24)
    per_rollout, total = re.findall(r"([\d,]+) tokens", measured)
    assert abs(int(total) - 54 * int(per_rollout)) <= 27
    # A known length needs no measurement.
    other = world._replace(typical_tokens=lambda: 3.0)
    run_plan(plan, other, tmp_path / "other.jsonl", progress=True)
    assert "measured" not in capsys.readouterr().err
    run_plan(plan, other, tmp_path / "third.jsonl", progress=False)
    assert capsys.readouterr().err == ""


def test_a_run_ends_with_what_the_engine_has_done_for_it(tmp_path, capsys):
    class Counting(FakeEngine):
        totals = Totals(1000, 1000, 7, 5.0)

        def run(self, *arguments, **settings):
            self.totals = self.totals.plus(Totals(30, 40, 1, 2.0))
            return super().run(*arguments, **settings)

    plan = make_plan(["smc"], [1, 4], 1)
    world = fake_world(6)._replace(engine=Counting())
    run_plan(plan, world, tmp_path / "rows.jsonl", progress=True)
    assert (
        "60 tokens were written, with a row utilisation of 0.75; 2 programs were "
        "compiled or read from disk in 4 s." in capsys.readouterr().err
    )
    # A second run has nothing to do, and nothing to say.
    run_plan(plan, world, tmp_path / "rows.jsonl", progress=True)
    assert "utilisation" not in capsys.readouterr().err
