"""Files of experiments, their comparison, and the reproductions of claims."""

import json

import numpy as np
import pytest

from tsi.errors import ConfigurationError, ResultsError, UnknownNameError
from tsi.experiments.cli import main
from tsi.experiments.commands import study_commands
from tsi.experiments.experiment import (
    Experiment,
    check_experiments,
    read_curves,
    read_experiments,
    run_experiments,
)
from tsi.experiments.model_options import DryRun, ModelOptions
from tsi.experiments.plans.methods import get_methods
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.reports.curves import Point
from tsi.experiments.reproductions import (
    NAMES,
    difficulty,
    get_reproduction,
    headline,
    tuned_temperature,
)
from tsi.experiments.statistics.accuracy import accuracy
from tsi.experiments.statistics.difficulty import difficulty_bins
from tsi.experiments.tasks import TASKS
from tsi.experiments.worlds.chosen_task import choose_task
from tsi.loading.named_reward import parse_reward

STUDY = """
from tsi.experiments import Experiment, ModelOptions, ProblemOptions

EXPERIMENTS = [
    Experiment(
        f"t{temperature}",
        ProblemOptions("chain"),
        ModelOptions(temperature=temperature, reward="none"),
        methods=("self_consistency",),
        budgets=(1, 2),
        num_problems=2,
    )
    for temperature in (0.5, 1.0)
]
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.py"
    path.write_text(STUDY)
    return path


@pytest.mark.long
def test_a_file_of_experiments_is_run_compared_and_resumed(study, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["run", str(study), "--out", str(out), "--no-progress"]
    assert main([*command, "--dry-run"]) == 0
    assert not out.exists()
    assert main(command) == 0
    table = (out / "comparison.md").read_text()
    assert table in capsys.readouterr().out
    lines = [line.split("|")[1:4] for line in table.splitlines()]
    assert [cell.strip() for cell in lines[0]] == ["experiment", "method", "N = 1"]
    assert [line[0].strip() for line in lines[2:]] == ["t0.5", "t1.0"]
    assert (out / "study.py").read_text() == STUDY
    rows = {name: (out / name / "rows.jsonl").read_bytes() for name in ("t0.5", "t1.0")}
    assert main(command) == 0
    for name, content in rows.items():
        assert (out / name / "rows.jsonl").read_bytes() == content


def test_every_field_reaches_the_command(tmp_path):
    calls = []
    experiment = Experiment(
        "one",
        ProblemOptions("countdown"),
        ModelOptions(temperature=0.3),
        ("smc",),
        (4,),
        7,
        2,
        (0.4, 1.0),
        "all",
    )

    def scale(problems, options, **others):
        calls.append((problems, options, others))
        return 3 if len(calls) == 1 else 0

    other = experiment._replace(name="two")
    code = run_experiments(
        [experiment, other], tmp_path, scale, dry=DryRun(dry_run=True)
    )
    (problems, options, others), (_, _, second) = calls
    assert second["out"] == str(tmp_path / "two")
    assert code == 3, "the command's exit code is handed on"
    assert (problems, options) == (experiment.problems, experiment.models)
    assert others["out"] == str(tmp_path / "one")
    assert others["continue_anyway"] is False
    for name in Experiment._fields[3:]:
        assert others[name] == getattr(experiment, name)
    with pytest.raises(ResultsError, match=r"There is no .*one/rows\.jsonl"):
        read_curves([experiment], tmp_path)


def test_studies_and_reproductions_continue_rows_of_other_versions(study, monkeypatch):
    calls = []

    def scale(*_, continue_anyway, **__):
        calls.append(continue_anyway)
        return 0

    monkeypatch.setattr(study_commands, "scale", scale)
    for command in (["run", str(study)], ["reproduce", "aggregation", "--small"]):
        for options in ([], ["--continue-anyway"]):
            calls.clear()
            assert main([*command, *options, "--dry-run"]) == 0
            assert set(calls) == {bool(options)}


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1", "does not define EXPERIMENTS"),
        ("EXPERIMENTS = []", "does not define EXPERIMENTS"),
        ("EXPERIMENTS = 'text'", "does not define EXPERIMENTS"),
        ("EXPERIMENTS = [1]", "does not define EXPERIMENTS"),
        ("1 / 0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
        (STUDY.replace('f"t{temperature}"', '"same"'), "'same' of an experiment"),
        (STUDY.replace('f"t{temperature}"', '"../up"'), "'../up' of an experiment"),
    ],
)
def test_a_file_without_experiments_is_a_sentence(tmp_path, source, sentence):
    path = tmp_path / "study.py"
    path.write_text(source)
    with pytest.raises(ConfigurationError) as caught:
        read_experiments(path)
    assert sentence in str(caught.value)
    with pytest.raises(ConfigurationError, match="nowhere"):
        read_experiments(tmp_path / "nowhere.py")


@pytest.mark.parametrize("name", NAMES)
def test_a_reproduction_names_what_exists(name):
    found = get_reproduction(name)
    for part in ("Source: ", "Cost: ", f"Command: tsi reproduce {name}"):
        assert part in found.claim
    assert len(found.claim.splitlines()[0]) < 90
    assert check_experiments(found.full)
    for experiment in [*found.full, *found.small]:
        assert get_methods(experiment.methods)
        models = experiment.models
        if models.reward is not None:
            parse_reward(models.reward, models.aggregation)
    for experiment in found.small:
        assert experiment.problems.task in TASKS
        assert experiment.models.policy is None
        assert choose_task(experiment.problems).name == experiment.problems.task


def point(correct):
    table = np.array(correct, bool)[:, None]
    costs = [10.0] * 4
    empty = np.zeros(table.shape)
    return Point(
        table,
        *accuracy(table),
        16,
        *costs,
        empty,
        np.zeros(table.shape, np.int64),
        table * 1.0,
        empty,
    )


def test_the_best_temperature_is_chosen_by_validation_accuracy():
    generator = np.random.default_rng(0)
    chances = {0.4: 0.3, 0.7: 0.9, 1.0: 0.5}
    curves = {
        f"{task}-t{t}": {
            method: {16: point(generator.random(200) < chance)}
            for method in tuned_temperature.METHODS
        }
        for task in tuned_temperature.TASKS
        for t, chance in chances.items()
    }
    text = tuned_temperature.summarise(curves)
    lines = [line for line in text.splitlines() if line.startswith("| chain_long")]
    assert len(lines) == len(tuned_temperature.METHODS)
    for line in lines:
        assert line.split("|")[-2].strip() == "0.7"
    # Of equal accuracies the higher temperature is chosen.
    for key in curves:
        curves[key] = {m: {16: point([1, 0])} for m in tuned_temperature.METHODS}
    for line in tuned_temperature.summarise(curves).splitlines():
        if line.startswith("| chain_long"):
            assert line.split("|")[-2].strip() == "1"


def test_the_headline_compares_methods_at_their_own_temperatures(tmp_path):
    generator = np.random.default_rng(0)
    curves = {}
    for experiment in headline.SMALL:
        temperature = experiment.models.temperature
        curves[experiment.name] = {
            method: {
                n: point(generator.random(400) < 0.9 - 0.5 * temperature)
                for n in experiment.budgets
            }
            for method in experiment.methods
        }
    text = headline.summarise(curves)
    for task, chosen in headline.CHOSEN.items():
        for title in ("its own", "a common"):
            assert f"{task}, each method at {title} temperature T:" in text
        for method, best in chosen.items():
            assert method in curves[f"{task}-t{best}"]
            # No method is run twice at one temperature and budget.
            is_common = method in headline.STEPWISE and best != headline.COMMON
            assert (method in curves[f"{task}-common"]) == is_common
    own, common = text.split("a common temperature")[:2]
    # Both the tables of accuracies and of differences have the temperature.
    for part, temperature in ((own, "0.4"), (common, "1")):
        assert f"| particle filter, T = {temperature} " in part
        line = next(x for x in part.splitlines() if x.startswith("| particle filter "))
        assert line.split("|")[2].strip() == temperature
    shown = [
        float(next(line for line in part.splitlines() if "| particle" in line)[-13:-9])
        for part in (own, common)
    ]
    # Chances are 0.7 at the filter's own temperature 0.4, and 0.4 at temperature 1.
    assert shown[0] > 60
    assert shown[1] < 50
    assert "particle filter" in own
    assert "| 1 " not in own.split("| ---")[0]
    assert common.count("| REBASE") >= 2
    drawn = headline.draw(curves, tmp_path)
    assert len(drawn) == 8
    assert all(path.stat().st_size > 1000 for path in drawn)
    assert get_reproduction("headline").is_small
    assert not get_reproduction("main_figure").is_small


def test_difficulty_is_that_of_other_samples():
    generator = np.random.default_rng(0)
    chances = {task: generator.random(200) for task in ("chain", "countdown")}
    curves = {}
    for task, chance in chances.items():
        curves[task] = {
            method: {n: point(generator.random(200) < chance) for n in (4, 16)}
            for method in difficulty.METHODS
        }
        pool = point(generator.random(200) < chance)
        counts = generator.binomial(16, chance[:, None], (200, 3))
        # The first seed is that of the methods, and has no say.
        counts[:, 0] = 16 * (chance < 0.5)
        pool = pool._replace(num_right=counts)
        curves[f"{task}-pool"] = {"self_consistency": {16: pool}}
    text = difficulty.summarise(curves)
    lines = [line.split("|") for line in text.splitlines() if "est " in line]
    assert len(lines) == 4
    for name, low, high in (("hardest", 0, 30), ("easiest", 70, 100)):
        shown = [line for line in lines if line[1].strip() == name]
        assert len(shown) == 2
        for line in shown:
            assert 90 <= int(line[2]) <= 110
            for cell in line[4:-1]:
                assert low < float(cell.split()[0]) < high


def test_bins_of_difficulty_are_quantiles_and_keep_equal_rates_together():
    rates = np.random.default_rng(0).permutation(np.arange(100) / 100)
    bins = difficulty_bins(rates, 4)
    assert np.bincount(bins).tolist() == [25] * 4
    np.testing.assert_array_equal(bins, (rates * 4).astype(int))
    many = difficulty_bins(np.array([0.0] * 6 + [0.5, 1.0]), 4)
    assert many.tolist() == [1] * 6 + [3, 3]
    assert difficulty_bins(np.zeros(3), 4).tolist() == [2, 2, 2]


def test_an_unknown_reproduction_lists_the_known_ones(capsys):
    with pytest.raises(UnknownNameError, match="main_figure"):
        get_reproduction("figure_9")
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(NAMES)


@pytest.mark.long
def test_validation_problems_are_no_test_problems(tmp_path):
    prompts = {}
    for split in ("test", "validation"):
        command = ["scale", "--task", "chain_long", "--split", split, "--reward"]
        command += ["none", "--methods", "self_consistency", "--budgets", "1"]
        command += ["--num-problems", "3", "--no-progress"]
        assert main([*command, "--out", str(tmp_path / split)]) == 0
        lines = (tmp_path / split / "rows.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "prompt" in row]
        prompts[split] = {row["prompt"] for row in rows}
        assert len(prompts[split]) == 3
        assert all(len(prompt) == 16 for prompt in prompts[split])
    assert prompts["test"].isdisjoint(prompts["validation"])


@pytest.mark.parametrize(
    ("field", "experiment"),
    [
        ("methods", Experiment("a", methods="smc")),
        ("budgets", Experiment("a", budgets=4)),
        ("num_problems", Experiment("a", num_problems="2")),
        ("seeds", Experiment("a", seeds=True)),
        ("keep", Experiment("a", keep="texts")),
        ("temperatures", Experiment("a", temperatures=0.4)),
        ("name", Experiment(3)),
        ("problems", Experiment("a", "chain")),
        ("problems", Experiment("a", ProblemOptions(problems="mine.jsonl"))),
        ("temperature", Experiment("a", models=ModelOptions(temperature="1"))),
    ],
)
def test_a_field_of_another_type_is_named(field, experiment):
    with pytest.raises(ConfigurationError, match=f"{field} is .* of the type"):
        check_experiments([experiment])


def test_a_file_that_exits_is_refused_and_may_be_its_own_record(study, capsys):
    exits = study.with_name("exits.py")
    exits.write_text("import sys\nsys.exit('no')")
    with pytest.raises(ConfigurationError, match="SystemExit: no"):
        read_experiments(exits)
    run_experiments([], study.parent, lambda *_, **__: 0, record=study)
    assert study.read_text() == STUDY
