"""Graders that misbehave, imported by name in the grading tests."""

import os
import re
import sys
import time
from pathlib import Path

NUMBER = 3


def compare(problem, answer):
    """An honest grader."""
    return problem.answer == answer


def count(problem, answer):
    """An honest grader that counts its calls."""
    with open(problem.data["counter"], "a") as file:
        file.write(".")
    return problem.answer == answer


def meet(problem, answer):
    """Whether another process grades at the same time."""
    folder = Path(problem.data["folder"])
    (folder / answer).touch()
    for _ in range(1000):
        if len(list(folder.iterdir())) == 2:
            return True
        time.sleep(0.01)
    return False


def misbehave(problem, answer):
    """A grader that the text of the answer drives into each kind of trouble."""
    if answer == "hang":
        time.sleep(1000)
    if answer == "spin":
        while True:
            pass
    if answer == "spin in C":
        re.fullmatch(r"(a|aa)+", "a" * 100 + "b")
    if answer == "die":
        os._exit(3)
    if answer == "raise":
        raise RuntimeError
    if answer == "exit":
        sys.exit(0)
    if answer == "memory":
        bytearray(8 * 2**30)
    if answer == "recursion":
        misbehave(problem, answer)
    if answer == "print":
        print("[true, null]")
    return problem.answer == answer
