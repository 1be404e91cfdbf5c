"""Graders that misbehave, imported by name in the grading tests."""

import os
import time


def compare(problem, answer):
    """An honest grader."""
    return problem.answer == answer


def misbehave(problem, answer):
    """A grader that the text of the answer drives into each kind of trouble."""
    if answer == "hang":
        time.sleep(1000)
    if answer == "spin":
        while True:
            pass
    if answer == "die":
        os._exit(3)
    if answer == "raise":
        raise RuntimeError
    if answer == "memory":
        bytearray(8 * 2**30)
    if answer == "print":
        print("[true, null]")
    return problem.answer == answer
