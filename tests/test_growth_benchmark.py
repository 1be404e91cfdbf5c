"""The benchmark of growth: its sizes, its slopes, its rows, and one small run."""

import numpy as np
import pytest

from tsi.experiments.benchmarks import growth, growth_table
from tsi.experiments.benchmarks.growth import Growth
from tsi.experiments.benchmarks.growth_table import Sizes, slope, table

SMALL = Sizes((1, 2, 4), (64,), (16,), 4, 64)


def row(sweep: str, work: Growth, seconds: float) -> dict:
    size = getattr(work, sweep)
    numbers = {"held_bytes": 2**20 * size, "unshared_bytes": 2**20 * size**2}
    tokens = {"generated_tokens": 100 * size, "prefill_bytes": 3 * 2**20}
    return {
        "sweep": sweep,
        "work": work._asdict(),
        "seconds": seconds,
        **numbers,
        **tokens,
    }


def test_each_sweep_changes_one_size_alone():
    sweeps = Sizes().sweeps()
    base = Growth()
    for name in ("particles", "tokens", "prompt"):
        sizes = [getattr(work, name) for work in sweeps[name]]
        assert sizes == sorted(set(sizes))
        assert len(sizes) >= 5
        assert all(
            work._replace(**{name: 0}) == base._replace(**{name: 0})
            for work in sweeps[name]
        )
    names = {work.sampler for work in sweeps["sampler"]}
    assert names == set(growth.SAMPLERS) - {base.sampler}
    assert all(
        work.tokens % work.step_tokens == 0
        for works in sweeps.values()
        for work in works
    )


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_a_slope_is_the_power_where_a_constant_matters_no_more(power):
    sizes = np.array([1, 10, 1e5, 1e6, 1e7])
    assert slope(sizes, 3 * sizes**power) == pytest.approx(power, abs=1e-9)
    # 5 in addition is far below the numbers at the larger sizes.
    assert slope(sizes, sizes**1.7 + 5) == pytest.approx(1.7, abs=1e-4)


def test_no_slope_of_one_size_or_of_zero():
    assert slope(np.ones(1), np.ones(1)) is None
    assert slope(np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.0, 2.0])) is None


def test_the_table_has_a_line_per_size_and_slopes():
    rows = [row("particles", Growth(particles=n), 0.5 * n) for n in (1, 4, 16, 64)]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table(rows).splitlines()
        if line.startswith("|")
    ]
    assert lines[2] == ["1", "0.50", "100", "200", "1.0", "1.0", "3.0"]
    assert lines[-1] == ["slope", "1.00", "1.00", "", "1.00", "2.00", ""]
    assert "tokens 256, step tokens 32, prompt 64" in table(rows)


def test_rows_are_kept_and_measured_once_for_a_label(tmp_path, monkeypatch):
    commands = []

    def run_process(command, request, environment):
        commands.append(command)
        numbers = row("particles", Growth(), 1.0)
        return {
            name: numbers[name] for name in numbers if name not in ("sweep", "work")
        }

    monkeypatch.setattr(growth_table, "run_process", run_process)
    assert growth_table.main(SMALL, tmp_path, "a") == 0
    runs = [work for works in SMALL.sweeps().values() for work in works]
    assert len(commands) == len(runs) == 8
    assert growth_table.main(SMALL, tmp_path, "a") == 0
    assert len(commands) == 8
    growth_table.main(SMALL, tmp_path, "b")
    assert len(commands) == 16
    assert (tmp_path / "growth.md").exists()


@pytest.mark.parametrize("sampler", ["particle-filter", "mcts"])
@pytest.mark.long
def test_a_run_has_the_sizes_that_were_asked_for(sampler):
    found = growth.run(Growth(sampler, particles=4, tokens=16, step_tokens=8, prompt=5))
    assert found["mean_steps"] == 2.0
    if sampler == "particle-filter":
        assert found["generated_tokens"] == 4 * 16
    assert 0 < found["held_bytes"] <= found["unshared_bytes"]
