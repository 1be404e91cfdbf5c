"""chain_sum: the dataset's answers are what the extractor and the grader agree on."""

import numpy as np
import pytest
from small_checkpoints import bpe_tokenizer, small_config, small_model

from tsi.errors import ConfigurationError
from tsi.experiments.scaling import curve_llm
from tsi.experiments.tasks import chain_sum
from tsi.experiments.tasks.chain_sum import CHAIN_SUM
from tsi.experiments.tasks.equations import judge_equations, value_of
from tsi.experiments.tasks.generated import split_of
from tsi.models.loading.checkpoint import save


def test_answers_are_the_values_of_the_expressions():
    pytest.importorskip("reasoning_gym")
    problems = chain_sum.dataset_problems(30, seed=0)
    assert len({p.prompt for p in problems}) > 20
    for problem in problems:
        assert value_of(problem.prompt) == int(problem.answer)
        assert chain_sum.is_correct(
            problem, chain_sum.extract(f"Answer: {problem.answer}")
        )
        assert not chain_sum.is_correct(problem, str(int(problem.answer) + 1))


def test_the_worked_examples_are_right():
    for question, worked in chain_sum.EXAMPLES:
        assert judge_equations(worked) == "right"
        assert chain_sum.extract(worked) == str(value_of(question))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 9 = 11\nAnswer: 11", "11"),
        ("Answer: -5\n\nIn short, 3.", "-5"),
        ("3 - 8 = -5", "-5"),
        ("Answer: −5", "-5"),
        ("no idea", None),
        ("Answer: " + "9" * 50, None),
    ],
)
def test_extraction(text, answer):
    assert chain_sum.extract(text) == answer


def test_splits_share_no_problem_and_worked_solutions_are_right():
    pytest.importorskip("reasoning_gym")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        problems = CHAIN_SUM.problems(split, 40, 3)
        assert CHAIN_SUM.problems(split, 20, 3) == problems[:20]
        assert [problem.id for problem in problems] == list(range(40))
        assert len({problem.prompt for problem in problems}) == 40
        for problem in problems:
            assert split_of(problem.prompt) == split
            assert CHAIN_SUM.problem(problem.prompt).answer == problem.answer
            text = CHAIN_SUM.solution(problem, rng)
            assert CHAIN_SUM.verify(problem, text)
            lines = text.split("\n")
            assert len(lines) <= CHAIN_SUM.max_steps
            assert len(problem.prompt) <= CHAIN_SUM.max_prompt_tokens
            for i in range(len(lines) + 1):
                assert CHAIN_SUM.is_on_track(
                    problem, "".join(f"{x}\n" for x in lines[:i])
                )


@pytest.mark.parametrize(
    "prefix", ["2 + 9 = 12\n", "2 + 9 = 11\nAnswer: 11", "Answer: 8\n"]
)
def test_a_false_equation_or_answer_is_off_track(prefix):
    assert not CHAIN_SUM.is_on_track(CHAIN_SUM.problem("2 + 9 - 4"), prefix)


@pytest.mark.parametrize("prompt", ["", "12 + 3", "1+2", "1 + 2 + 3 + 4 + 5", "1 * 2"])
def test_another_expression_is_no_problem(prompt):
    with pytest.raises(ConfigurationError, match="not a problem of chain_sum"):
        CHAIN_SUM.problem(prompt)


def test_the_experiments_worlds_differ_by_their_reward_alone(tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym")
    sizes = {"num_layers": 1, "vocab_size": 400, "max_length": 640, "eos_ids": (2,)}
    config = small_config(**sizes)
    save(small_model(config), config, tmp_path, tokenizer=bpe_tokenizer())
    monkeypatch.setattr(curve_llm, "POLICY", str(tmp_path))
    worlds = dict(curve_llm.language_worlds(4, max_rows=8, temperature=0.8))
    assert list(worlds) == ["equations", "judge", "self-certainty"]
    for name, world in worlds.items():
        assert world.problems == chain_sum.dataset_problems(4, 0)
        settings = world.settings
        assert settings.pop("reward") == name
        limits = [settings[f"max_{x}"] for x in ("steps", "step_tokens", "tokens")]
        target = world.engine.target
        found = [target.max_steps, target.max_step_tokens, target.max_tokens]
        assert limits == found == [6, 16, 48]
        assert settings["temperature"] == world.engine.temperature == 0.8
    equations, judge, confidence = (world.settings for world in worlds.values())
    assert judge.pop("reward_settings") == {"question": curve_llm.QUESTION}
    assert equations.pop("reward_settings").keys() == {"right", "none", "wrong"}
    assert confidence.pop("reward_settings") == {}
    assert confidence == judge == equations
    assert "aggregation" not in judge
    question = bpe_tokenizer().decode(worlds["judge"].engine.target.reward.question)
    assert curve_llm.QUESTION in question
