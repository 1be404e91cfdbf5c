"""The grader "choice": multiple choice, by letter or by the text of the choice.

A letter may be written A, (A), A., A), **A**, "option A", \\text{A} or \\boxed{A}. If
the problem's data has ``choices``, a list of texts, an answer that is the text of one
of them counts as its letter, and so does a gold answer. A number is a text, not a
letter: 2 is the choice that reads 2, not the second.
"""

import re
import string

from tsi.problem import Problem
from tsi.results.answers import MAX_TEXT, answers_in, find_answer, last_number
from tsi.results.canonical import canonical
from tsi.results.markup import remove_markup

_LETTER = re.compile(
    r"(?:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:? ?)?"
    r"[(\[]?([A-Z])[)\].:]?",
    re.IGNORECASE,
)
_LEADING = re.compile(r"[(\[]?([A-Z])(?:[)\].:]|$)(?![A-Za-z])")
_IN_TEXT = re.compile(r"(?<![A-Za-z0-9'’\\])\(?([A-Z])(?:\)|(?![A-Za-z0-9'’]))")


def extract(text: str) -> str | None:
    """The letter that a text chooses, or else the words of its answer.

    A text without a box or "answer is" chooses the last single capital letter, apart
    from "I" and "A" before a word.
    """
    text = text[-MAX_TEXT:]
    # A number is a choice only where a box or a cue says so; elsewhere a letter of the
    # text is likelier.
    number, is_stated = last_number(text), find_answer(text) is not None
    answers = [
        words
        for index, words in enumerate(answers_in(text))
        if words != number or (index == 0 and is_stated)
    ]
    for words in answers:
        if letter := letter_of(words):
            return letter
    if answers:
        return canonical(answers[0])
    letters = [m for m in _IN_TEXT.finditer(text) if not _is_word(text, m)]
    return letters[-1].group(1) if letters else None


def letter_of(answer: str) -> str | None:
    """The letter of an answer such as "(B)", "B. seven" or "option b", if any."""
    words = answer.strip(" *_`$\n")
    for text in (words, remove_markup(words)):
        if match := _LETTER.fullmatch(text):
            return match.group(1).upper()
    match = _LEADING.match(words)
    return match.group(1) if match else None


def is_correct(problem: Problem, answer: str) -> bool:
    """Whether the answer chooses what the gold answer does."""
    gold, given = _choice_of(problem, problem.answer), _choice_of(problem, answer)
    return gold is not None and gold == given


def check_gold(problem: Problem) -> str | None:
    """What is wrong with a gold answer or with choices, as the end of a sentence."""
    choices = problem.data.get("choices", [])
    if not isinstance(choices, list) or len(choices) > len(string.ascii_uppercase):
        return "has choices that are not a list of at most 26 texts"
    letters = _choice_of(problem, problem.answer)
    if letters is None:
        return "is neither a letter nor one of the choices"
    if (
        choices
        and len(letters) == 1
        and letters >= string.ascii_uppercase[len(choices) :][:1]
    ):
        return f"is not one of {len(choices)} choices"
    return None


def _choice_of(problem: Problem, answer: str) -> str | None:
    """The letter of an answer, by its text if it has none; None if it is neither."""
    choices = [canonical(str(text)) for text in problem.data.get("choices", [])]
    form = canonical(answer)
    # One letter names a choice by its position, and not by its text.
    is_letter = form is not None and len(form) == 1 and form.isalpha()
    if form is not None and choices.count(form) == 1 and not is_letter:
        return string.ascii_uppercase[choices.index(form)]
    return letter_of(answer)


def _is_word(text: str, match: re.Match[str]) -> bool:
    """Whether a capital letter is the pronoun or the article."""
    bare = not match.group().startswith("(") and not match.group().endswith(")")
    after = text[match.end() : match.end() + 2]
    return bare and match.group(1) in "IA" and bool(re.match(r" [a-z]", after))
