"""Your own grader: a function by its name, and the answers that it gets.

It gets the answer as written in the text, so that it can read words, spaces, decimals
and long texts as the gold answer has them. Particles vote together if their answers are
the same text. A function with an attribute ``extract``, ``(text) -> str | None``, finds
the answers itself, and so decides which votes are equal.
"""

import warnings
from collections.abc import Callable

from tsi.errors import ConfigurationError, UngradedAnswerWarning
from tsi.experiments.named_function import describe_error, describe_kind, find_function
from tsi.results.answers import MAX_TEXT, answers_in, find_answer

EXTRACT = "extract"


def find_extractor(name: str) -> Callable[[str], str | None] | None:
    """The extractor of the function "module:function"; None if it has none.

    Raises:
        ConfigurationError: there is no such function, or its `extract` is not a
            function.
    """
    function = find_function(
        name, "a function of a problem and an answer", "my_module:is_correct"
    )
    extract = getattr(function, EXTRACT, None)
    if extract is not None and not callable(extract):
        raise ConfigurationError(
            f"{name}.{EXTRACT} is {describe_kind(extract)}, and must be a function of "
            "a text that returns an answer or None."
        )
    return None if extract is None else OwnExtractor(name, extract)


def find_written(text: str) -> str | None:
    """The answer of a text as written there, without the spaces around it.

    It is found as :func:`tsi.results.answers.extract_answer` finds it, has any length,
    and does not get a canonical form.

    Args:
        text: untrusted; only its last 65,536 characters are read.
    """
    for found in (find_answer(text, MAX_TEXT), *answers_in(text)):
        if found is not None and found.strip():
            return found.strip()
    return None


class OwnExtractor:
    """Your own extractor. If it fails, the text has no answer, and the run continues.

    The first failure is a warning, `UngradedAnswerWarning`.

    Args:
        name: of its grader, for the warning.
        extract: ``(text) -> answer``, or None.
    """

    def __init__(self, name: str, extract: Callable[[str], str | None]) -> None:
        self._name, self._extract, self._has_failed = name, extract, False

    def __call__(self, text: str) -> str | None:
        """The answer of a text."""
        try:
            answer = self._extract(text)
            if answer is not None and not isinstance(answer, str):
                raise TypeError(f"it returned {answer!r:.80}, and not a text or None")
            return answer or None
        except Exception as error:  # whatever a user's function raises
            if not self._has_failed:
                self._has_failed = True
                warnings.warn(
                    f"The extractor of {self._name} failed: {describe_error(error)}. "
                    "Texts on which it fails count as texts without an answer.",
                    UngradedAnswerWarning,
                    stacklevel=2,
                )
            return None
