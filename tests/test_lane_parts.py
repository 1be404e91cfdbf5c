"""The parts of a lane alone: when it does what, and which rows a request means."""

import numpy as np
import pytest

from tsi.engine.population import Population
from tsi.engine.programs.row_replies import RowReplies
from tsi.engine.row_requests import requests_of_rows, rows_to_keep
from tsi.engine.schedule import (
    num_to_enter,
    num_to_wait_for,
    slots_to_read,
    width_of_step,
)
from tsi.explorer import Plan, Request

SAMPLER, EXPLORER = Plan(2, 0, 4), Plan(2, 3, 4)


def replies(finished):
    number = len(finished)
    numbers = np.arange(number, dtype=np.float32)
    ends = np.asarray(finished, bool)
    return RowReplies(numbers, numbers, numbers, ends, np.full(number, 5, np.int32))


@pytest.mark.parametrize(
    ("free", "left", "number"), [(1, 9, 0), (2, 9, 2), (8, 9, 8), (1, 1, 1), (3, 0, 0)]
)
def test_problems_enter_when_a_quarter_of_the_places_is_free(free, left, number):
    assert num_to_enter(free, left, places=8) == number


def test_a_burst_waits_for_the_rows_that_somebody_needs():
    problems = np.array([0, 0, 0, 1, 1])

    def number(part=0.125, queued=False, smaller=0, slots=8):
        return num_to_wait_for(
            problems, slots=slots, part=part, queued=queued, smaller=smaller
        )

    assert number(part=1.0) == 5
    assert number(queued=True) == 1
    assert number(queued=True, slots=64) == 5
    # The sampler of problem 1 decides after two rows.
    assert number() == 2
    assert number(part=0.5) == 4
    assert number(part=0.5, smaller=4) == 1


def test_steps_that_nobody_waits_for_are_read_in_fuller_batches():
    ended = np.array([True, True, False, True, False])
    active = np.array([False, False, True, False, False])
    problems = np.array([0, 1, 1, 0, 2])
    counts = np.array([7, 1, 9, 3, 1])
    slots = ended, active, problems, counts
    assert slots_to_read(*slots, 2, all_now=True).tolist() == [1, 3, 0]
    # Problem 1 has a row that still writes.
    assert slots_to_read(*slots, 2, all_now=False).tolist() == [3, 0]
    # There is room for its other row.
    assert slots_to_read(*slots, 3, all_now=False).tolist() == [1, 3, 0]


@pytest.mark.parametrize(
    ("longest", "most", "width"), [(1, 512, 32), (33, 512, 128), (400, 450, 450)]
)
def test_steps_are_read_at_few_widths(longest, most, width):
    assert width_of_step(longest, most) == width


def test_rows_of_places_are_working_and_stored_ones():
    population = Population(3, EXPLORER, 4)
    assert (population.working, population.total) == (6, 15)
    rows = population.rows_of(np.array([0, 2]))
    assert rows.tolist() == [0, 1, 6, 7, 8, 4, 5, 12, 13, 14]
    assert population.working_rows(2).tolist() == [4, 5]
    numbers = np.array([0, 2])
    assert population.prefix_rows(1, numbers).tolist() == [9, 11]
    assert Population(3, SAMPLER, 4).prefix_rows(1, np.arange(2)).tolist() == [2, 3]


def test_a_sampler_decides_when_all_steps_of_its_problem_are_read():
    population = Population(2, SAMPLER, 4)
    population.enter([7, 8], np.array([0, 1]))
    rows = np.arange(4)
    population.move(rows, rows, None, replies([False, False, True, False]))
    active = population.start_turn(rows, np.array([True, True, True, True]))
    assert active.tolist() == [True, True, False, True]
    population.end_step(np.array([1, 3]), replies([False, False]))
    assert population.is_ready.tolist() == [False, True]
    assert population.depths.tolist() == [0, 1, 0, 1]
    # The rows of a problem that has left are not waited for.
    population.leave(np.array([1]))
    population.end_step(np.array([0, 2]), replies([False, False]))
    assert population.is_ready.tolist() == [True, False]
    assert population.waiting.tolist() == [0, 0]
    assert population.lengths.tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("plan", [SAMPLER, EXPLORER])
def test_a_row_of_all_steps_takes_no_more(plan):
    population = Population(1, plan, 4)
    population.enter([0], np.array([0]))
    rows = np.arange(2)
    population.depths[:] = 4
    population.move(rows, rows, np.array([4, 3]), replies([False, False]))
    active = population.start_turn(rows, np.array([True, True]))
    assert active.tolist() == [False, True]
    # An explorer learns of it; a sampler has counted its own steps.
    ended = population.reply_by_place().finished
    assert ended.tolist() == [[plan.stored > 0, False]]


def test_requests_are_those_of_the_problems_that_ask():
    population = Population(3, EXPLORER, 4)
    request = Request(
        parents=np.array([[0, 1], [2, 2], [0, 2]]),
        slots=np.array([[1, 3], [0, 1], [2, 0]]),
        extend=np.array([[True, True], [True, False], [False, True]]),
        depths=np.array([[1, 2], [3, 4], [5, 6]]),
        sources=np.array([[-1, 0], [-1, -1], [1, -1]]),
    )
    asked = np.array([True, False, True])
    found = requests_of_rows(request, asked, population)
    assert found.rows.tolist() == [0, 1, 4, 5]
    assert found.parents.tolist() == [6, 7, 12, 14]
    assert found.limit.tolist() == [1, 2, 5, 6]
    assert found.extend.tolist() == [True, True, False, True]
    assert found.sources.tolist() == [-1, 6, 13, -1]
    # A slot of M is nowhere.
    stored, rows = rows_to_keep(request, asked, population)
    assert stored.tolist() == [7, 14, 12]
    assert rows.tolist() == [0, 4, 5]


def test_a_samplers_parents_are_working_rows():
    population = Population(2, SAMPLER, 4)
    parents = np.array([[1, 1], [0, 0]])
    request = Request(parents, parents, np.ones((2, 2), bool))
    found = requests_of_rows(request, np.array([False, True]), population)
    assert found.rows.tolist() == [2, 3]
    assert found.parents.tolist() == [2, 2]
    assert found.limit is None
    assert found.sources is None
