"""Eight short word problems, written for this benchmark, with their answers.

With the instruction to write blank lines, SmolLM2-135M writes about 200 tokens in 2 to
12 steps of very different lengths. It is seldom right.
"""

import re

from tsi.problem import Problem

QUESTIONS = (
    (
        "A baker fills 6 trays with 8 rolls each and sells 29 rolls before noon. How "
        "many rolls are left for the afternoon?",
        "19",
    ),
    (
        "Mira reads 14 pages a day on five days of the week and 25 pages a day on the "
        "other two. How many pages does she read in three weeks?",
        "360",
    ),
    (
        "A bus starts with 17 passengers. At the first stop 9 get on and 4 get off, at "
        "the second 6 get on and 11 get off. How many passengers are on the bus now?",
        "17",
    ),
    (
        "Three friends share the cost of a tent of 126 dollars and of two lamps of 15 "
        "dollars each equally. How much does each of them pay?",
        "52",
    ),
    (
        "A garden is 12 metres long and 7 metres wide. A fence costs 9 dollars a "
        "metre. What does a fence around the whole garden cost?",
        "342",
    ),
    (
        "Jonas has twice as many stamps as Lea, and Lea has 13 more than Tom, who has "
        "24. How many stamps do the three have together?",
        "135",
    ),
    (
        "A tank holds 240 litres. One pipe fills it with 18 litres a minute while a "
        "leak loses 3 litres a minute. After how many minutes is the tank full?",
        "16",
    ),
    (
        "A shop lowers the price of a coat of 80 dollars by a quarter and then by "
        "another 10 dollars. What do two such coats cost?",
        "100",
    ),
)

INSTRUCTION = " Solve it step by step, with a blank line between the steps."

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def problems(count: int) -> list[Problem]:
    """The first of the questions, numbered from 0."""
    questions = enumerate(QUESTIONS[:count])
    return [Problem(i, text + INSTRUCTION, answer) for i, (text, answer) in questions]


def extract(text: str) -> str | None:
    """The last number of a text, without commas and a final .00."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "").removesuffix(".00") if numbers else None
