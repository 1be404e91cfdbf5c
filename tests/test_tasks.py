"""The tasks' verifiers are exact, and no problem is on both sides of a split."""

import itertools

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tsi.errors import ConfigurationError
from tsi.experiments.tasks import get_task
from tsi.experiments.tasks.countdown import is_solvable

BOTH = pytest.mark.parametrize("name", ["chain", "countdown"])


def worked(name: str, count: int = 300):
    task, rng = get_task(name), np.random.default_rng(5)
    problems = task.problems("train", count, 11)
    return task, [(problem, task.solution(problem, rng)) for problem in problems]


def prefixes(text: str) -> list[str]:
    lines = text.split("\n")
    return ["".join(f"{line}\n" for line in lines[:i]) for i in range(len(lines))]


@BOTH
def test_every_worked_solution_is_right_and_on_track_all_along(name):
    task, pairs = worked(name)
    for problem, text in pairs:
        assert task.verify(problem, text)
        assert task.is_on_track(problem, text)
        assert all(task.is_on_track(problem, prefix) for prefix in prefixes(text))


@BOTH
def test_texts_fit_the_limits_and_the_alphabet(name):
    task, pairs = worked(name)
    for problem, text in pairs:
        steps = [f"{line}\n" for line in text.split("\n")]
        assert len(problem.prompt) <= task.max_prompt_tokens
        assert len(steps) <= task.max_steps
        assert max(map(len, steps)) <= task.max_step_tokens
        assert set(problem.prompt + text) <= set(task.alphabet)


@BOTH
def test_an_unfinished_text_has_no_answer(name):
    task, pairs = worked(name, 50)
    for problem, text in pairs:
        for prefix in (*prefixes(text), text + "\n", text[:-1] + "="):
            assert task.extract(prefix) is None
            assert not task.verify(problem, prefix)


@BOTH
def test_a_changed_result_is_off_track_from_there_on(name):
    task, pairs = worked(name, 100)
    changed = 0
    for problem, text in pairs:
        lines = text.split("\n")
        for i, line in enumerate(lines):
            left, right = line.split("=")
            first, *others = right.split(",")
            # One more than the truth is never taken back by a factor: it is coprime.
            wrong = ",".join([str((int(first) + 1) % 100), *others])
            bad = [*lines[:i], f"{left}={wrong}"]
            finished = i == len(lines) - 1
            prefix = "\n".join(bad) + ("" if finished else "\n")
            later = [line for line in lines[i + 1 :] if "*" in line]
            if name == "chain" and any(line[1] in "2468 5" for line in later):
                continue
            assert not task.is_on_track(problem, prefix)
            changed += 1
    assert changed > 50


def test_chain_follows_the_left_to_right_rule_modulo_100():
    task = get_task("chain")
    assert task.problem("7*8+5-9").answer == "52"
    assert task.problem("3-9+1*2").answer == "90"
    assert task.problem("3-9+1*2:").prompt == "3-9+1*2:"
    problem = task.problem("7*8+5-9")
    assert not task.verify(problem, "*8=56\n+5=61\n-9=53")
    # A slip that a later factor takes back is no obstacle, and the verifier says so.
    even = task.problem("5+1*8*5")
    assert task.is_on_track(even, "+1=56\n")
    assert task.verify(even, "+1=56\n*8=48\n*5=40")
    # Skipping an operation is one.
    assert not task.is_on_track(even, "*8=40\n")
    assert not task.is_on_track(even, "+1=6\n*8=48\n*5=40\n")


def test_countdown_answers_are_expressions_checked_against_the_numbers():
    task = get_task("countdown")
    problem = task.problem("3,5,7,2>24")
    text = "3*5=15,7,2\n15+7=22,2\n22+2=24"
    assert task.extract(text) == "((3*5)+7)+2"
    assert task.is_correct(problem, "2+(7+5*3)")
    for wrong in (
        "((3*5)+7)+1",  # a number that was not given
        "(3*5)+7",  # one left out
        "(3*5)+(7+2)+0",  # one invented
        "24",
        "3*5+7*2",  # another value
        "(3*5+7+2",
        "3**5+7+2",
        "9" * 50,
        "__import__('os')",
        None,
    ):
        assert not task.is_correct(problem, wrong)
    # Claiming the target is not reaching it.
    assert not task.verify(problem, "3*5=15,7,2\n15+7=22,2\n22-2=24")
    assert not task.verify(problem, "3*5=15,7,9\n15+9=24,7\n24+0=24")
    # Two orders of the same operands are one answer.
    other = "5*3=15,7,2\n7+15=22,2\n2+22=24"
    assert task.extract(other) == task.extract(text)


def test_countdown_knows_dead_ends():
    task = get_task("countdown")
    problem = task.problem("3,5,7,2>24")
    assert task.is_on_track(problem, "3*5=15,7,2\n")
    assert not is_solvable((35, 3, 2), 24)
    assert not task.is_on_track(problem, "7*5=35,3,2\n")
    assert not task.is_on_track(problem, "3*5=15,7\n")
    assert not task.is_on_track(problem, "3*5=14,7,2\n")
    assert not task.is_on_track(problem, "3*3=9,7,2\n")


def test_countdown_solver_agrees_with_plain_enumeration():
    def reach(numbers):
        if len(numbers) == 1:
            return {numbers[0]}
        found = set()
        for i, j in itertools.permutations(range(len(numbers)), 2):
            rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
            a, b = numbers[i], numbers[j]
            for result in (a + b, a - b, a * b):
                if 0 <= result <= 99:
                    found |= reach([result, *rest])
        return found

    rng = np.random.default_rng(3)
    for _ in range(20):
        numbers = [int(n) for n in rng.integers(1, 10, rng.integers(3, 5))]
        reached = reach(numbers)
        assert {t for t in range(100) if is_solvable(tuple(numbers), t)} == reached


@pytest.mark.long
@BOTH
def test_splits_share_no_problem_whatever_the_seeds(name):
    task = get_task(name)

    def identities(split, seed):
        return {
            f"{sorted(p.data['numbers'])}>{p.answer}"
            if name == "countdown"
            else p.prompt
            for p in task.problems(split, 800, seed)
        }

    splits = [
        identities("train", 1),
        identities("validation", 2),
        identities("test", 1),
    ]
    assert all(len(found) == 800 for found in splits)
    for one, other in itertools.combinations(splits, 2):
        assert not one & other


@BOTH
def test_problems_are_a_function_of_split_and_seed_and_lists_extend(name):
    task = get_task(name)
    problems = task.problems("test", 40, 3)
    assert task.problems("test", 40, 3) == problems
    assert task.problems("test", 15, 3) == problems[:15]
    assert [problem.id for problem in problems] == list(range(40))
    assert task.problems("test", 40, 4) != problems
    assert task.problem(problems[0].prompt) == problems[0]


@BOTH
@pytest.mark.parametrize("prompt", ["", "hello", "1+2", "0+1+2+3", "1,2>", "99,1,2>5"])
def test_a_malformed_prompt_says_what_one_looks_like(name, prompt):
    with pytest.raises(ConfigurationError, match="such as"):
        get_task(name).problem(prompt)


def test_an_unknown_split_is_refused():
    # Under pytest the annotation speaks first, elsewhere the task itself.
    with pytest.raises((ConfigurationError, TypeCheckError), match="validation"):
        get_task("chain").problems("holdout", 1, 0)


def test_asking_for_more_problems_than_there_are_ends():
    from tsi.experiments.tasks.generated import distinct_problems

    one = get_task("chain").problem("1+2+3+4")
    with pytest.raises(ConfigurationError, match="ask for fewer"):
        distinct_problems(itertools.repeat(("1+2+3+4", one)), "train", 2)
