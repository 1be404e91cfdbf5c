"""What whoever builds an experiment imports: a few names, each from one place."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import user_script
from flax import nnx
from small_checkpoints import small_config

import tsi
from tsi import experiments, rewards, samplers, serving, targets
from tsi.errors import ConfigurationError
from tsi.models.decoder import LanguageModel
from tsi.models.loading.checkpoint import save
from tsi.models.tokens.char_tokenizer import char_tokenizer
from tsi.public_names import lazy_names

NAMES = {
    tsi: """
        Engine Explorer ExplorerInfo ForcedEnd LoadedReward Plan Policy Problem
        ReasoningTarget Reply Request Result Run Sampler SolutionLimits Target
        Truncation TsiError batch check_sampler check_target explore extract_answer
        load_policy load_reward make_mesh picklable reasoning_engine run
        accuracy bench errors ess experiments models numpyro rewards samplers serving
        targets twists weights undefined_ess where_rows
    """,
    targets: """
        EXAMPLES LinearGaussianTarget TabularTarget impossible_prefixes peaked smooth
        unequal_lengths
    """,
    rewards: """
        AGGREGATIONS Aggregated FORMATS Format FormattedReward HostReward
        LikelihoodRatio NoReward PolicyConfidence PolicyValue Prefix ProcessReward
        Prompts Reading Reward SelfJudge Stateless Step TextReward TokenConfidence
        Verifier
    """,
    serving: """
        Abilities Controls HostScorer NoScorer Patience RewardSettings ServedEngine
        ServedPolicy connect served_reward
    """,
    experiments: """
        Experiment ExperimentPlan GeneratedTask GradingPool METHODS ModelOptions
        ProblemOptions
        PromptFormat StepEnds TASKS Task World embedded_world get_grader get_task
        join_place join_processes make_plan parse_place read_particles read_rows
        run_plan task_limits task_world to_frame write_report
    """,
}
"""Removing one of these breaks the programs of others."""
PACKAGES = pytest.mark.parametrize(
    "package", [tsi, experiments], ids=lambda p: p.__name__
)


@pytest.mark.parametrize("package", NAMES, ids=lambda package: package.__name__)
def test_the_public_names_are_these(package):
    assert sorted(package.__all__) == sorted(NAMES[package].split())
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


def names_of_type_checkers(package) -> dict[str, str]:
    """The modules that type checkers and editors find the names in."""
    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@PACKAGES
def test_type_checkers_find_the_same_objects(package):
    found = names_of_type_checkers(package)
    assert found.keys() == set(package.__all__)
    for name, module in found.items():
        here = package if module == package.__name__ else import_module(module)
        assert getattr(package, name) is getattr(here, name), name


def test_every_sampler_has_one_place():
    for name in samplers.__all__:
        assert hasattr(samplers, name)


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_and_the_command_line_are_imported_without_jax():
    heavy = "{'jax', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)"
    program = f"""
import sys, tsi, tsi.experiments, tsi.experiments.cli
tsi.TsiError, tsi.Problem, dir(tsi), dir(tsi.experiments)
print({heavy})
tsi.run
print('jax' in sys.modules)
"""
    assert run_python(program).split("\n") == ["set()", "True", ""]


@pytest.mark.parametrize("first", ["import tsi.run", "from tsi.run import Run", "pass"])
def test_a_function_is_not_hidden_by_the_module_of_its_name(first):
    program = f"""
import sys, tsi
{first}
import tsi.batch, tsi.samplers
from tsi import batch, explore, run
assert tsi.run is run is sys.modules['tsi.run'].run
assert tsi.batch is batch is sys.modules['tsi.batch'].batch
assert tsi.explore is explore is sys.modules['tsi.explore'].explore
"""
    run_python(program)


@PACKAGES
def test_a_name_that_is_none_is_an_attribute_error(package):
    assert not hasattr(package, "smapler")
    with pytest.raises(AttributeError, match="has no attribute 'smapler'") as raised:
        package.smapler  # noqa: B018
    assert (raised.value.name, raised.value.obj) == ("smapler", package)


def test_an_error_inside_a_module_is_not_taken_for_a_missing_name(
    tmp_path, monkeypatch
):
    (tmp_path / "broken_names").mkdir()
    (tmp_path / "broken_names" / "__init__.py").write_text("")
    (tmp_path / "broken_names" / "inside.py").write_text("import nowhere_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    package = import_module("broken_names")
    resolve, _ = lazy_names(package.__name__, {"broken_names.inside": ("f",)})
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        resolve("f")


def test_the_users_script_imports_public_names_alone():
    tree = ast.parse(Path(user_script.__file__).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    allowed = {"tsi", "tsi.samplers", "tsi.experiments"}
    ours = {name for name in found if name.startswith("tsi")}
    assert ours <= allowed


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = char_tokenizer("0123456789+=:\n")
    config = small_config(
        num_layers=1, vocab_size=tokenizer.num_ids, eos_ids=tokenizer.eos_ids
    )
    model = LanguageModel(config, rngs=nnx.Rngs(3))
    save(model, config, folder, tokenizer=tokenizer)
    return tsi.load_policy(str(folder), temperature=0.8)


def test_the_users_sampler_weighs_by_the_users_reward(policy):
    results = user_script.solve(policy, 8)
    for problem, result in zip(user_script.PROBLEMS, results, strict=True):
        assert result.problem_id == problem.id
        totals = []
        for n, steps in enumerate(result.particles.step_texts):
            texts = ["".join(steps[: t + 1]) for t in range(len(steps))]
            log_odds = user_script.score(texts)
            odds = result.rewards[n] / (1 - result.rewards[n])
            np.testing.assert_allclose(np.log(odds), log_odds[-1], atol=1e-4)
            assert result.answers[n] == user_script.extract(result.texts[n])
            totals.append(log_odds.sum())
        # A forced end costs the probability that it would have come by itself.
        weights = result.log_weights + result.log_evidence
        assert (weights <= np.asarray(totals) + 1e-3).all()
        assert (weights > np.asarray(totals) - 1e-3).any()
        evidence = np.log(np.mean(np.exp(weights)))
        np.testing.assert_allclose(evidence, result.log_evidence, atol=1e-4)


@pytest.mark.long
def test_the_users_task_makes_rows_of_published_methods(policy, tmp_path):
    rows = user_script.curve(policy, tmp_path / "rows.jsonl")
    assert {(cell.method, cell.budget, cell.problem) for cell in rows} == {
        (method, 2, problem.id)
        for method in ("best_of_n", "smc")
        for problem in user_script.PROBLEMS
    }
    for row in rows.values():
        settings = row["settings"]
        assert settings["task"] == "sums"
        assert settings["temperature"] == 0.8
        assert settings["delimiters"] == ["="]
        assert settings["max_tokens"] == user_script.LIMITS.max_tokens
        assert settings["reward"] == "the digit that is right"
        assert len(settings["policy_sha256"]) == 64


def test_a_policy_and_a_reward_are_shown_on_one_line(policy):
    reward = tsi.load_reward("none", policy, user_script.LIMITS)
    for shown in (repr(policy), repr(reward)):
        assert len(shown.splitlines()) == 1
    assert repr(reward) == "LoadedReward(NoReward)"
    assert repr(policy.name) in repr(policy)
    assert "temperature=0.8" in repr(policy)


def test_a_verifier_without_a_check_is_refused(policy):
    with pytest.raises(ConfigurationError, match="checks="):
        tsi.load_reward("outcome-verifier", policy, user_script.LIMITS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delimiters": "=\n"}, r"delimiters is '=\\n'. Give a list of strings"),
        ({"stop_strings": "=9"}, "stop_strings is '=9'. Give a list of strings"),
        ({"reward": "judge"}, "The reward is 'judge', a name. Use tsi.load_reward"),
        ({"reward": rewards.ProcessReward()}, "A ProcessReward reads with a model"),
        ({"reward": rewards.PolicyValue()}, "A PolicyValue reads with a model"),
        (
            {"reward": rewards.Aggregated(rewards.PolicyValue(), "min", 3)},
            "A PolicyValue reads with a model",
        ),
        ({"limits": tsi.SolutionLimits(0, 6, 42)}, "max_steps is 0"),
        ({"limits": tsi.SolutionLimits(7, 0, 42)}, "max_step_tokens is 0"),
        ({"limits": tsi.SolutionLimits(7, 6, -1)}, "max_tokens is -1"),
    ],
)
def test_an_engine_that_cannot_work_is_refused(policy, arguments, message):
    parts = {"reward": rewards.NoReward(), "limits": user_script.LIMITS} | arguments
    # The types are wrong on purpose.
    build = inspect.unwrap(tsi.reasoning_engine)
    with pytest.raises(tsi.TsiError, match=message):
        build(policy, parts.pop("reward"), parts.pop("limits"), **parts)
