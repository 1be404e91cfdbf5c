"""A process that grades; others continue if it is slow, out of memory or dead.

It is started with the name of a grader's function, "module:function", imports it, and
answers requests, each one line of JSON: the fields of a `Problem` and the answer. A
reply is whether the answer is right, the failure and what the failure was. Limits are
of processor time, so that a busy machine grades as an idle one does.
"""

import importlib
import json
import operator
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from tsi.models.workers.limited_process import READY
from tsi.models.workers.process_limits import Limits, TimeLimit, enforce_limits
from tsi.problem import Problem

MAX_DETAIL = 200
MAX_DEPTH = 2_000
"""Of Python's stack: parsers of nested brackets need more than the usual 1,000."""


def grade(
    function: Callable[[Problem, str], Any], limits: Limits, fields: list[Any]
) -> tuple[bool, str | None, str]:
    """Whether an answer is right, the failure and its description."""
    *problem, answer = fields
    try:
        with enforce_limits(limits):
            result = function(Problem(*problem), answer)
            if not isinstance(result, bool) and result not in (0, 1):
                raise TypeError(f"it returned {result!r:.80}, and not True or False")
            return bool(result), None, ""
    except TimeLimit:
        return False, "timeout", f"more than {limits.seconds:g} s of processor time"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Untrusted text can cause any error; a panic of Rust is no Exception.
        detail = str(error)[:MAX_DETAIL]
        return False, f"error: {type(error).__name__}", detail


def serve(limits: Limits, name: str, prepare: str | None = None) -> None:
    """Answer requests until standard input ends.

    Args:
        limits: of one grade.
        name: "module:function" of the grader.
        prepare: "module:function", called first and without limits.
    """
    # What a grader prints must not get into the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(MAX_DEPTH)

    def reply(message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        function = _find(name)
        if prepare is not None:
            _find(prepare)()
    except Exception as error:
        reply(f"{type(error).__name__}: {error}")
        return
    reply(READY)
    for line in sys.stdin:
        reply(grade(function, limits, json.loads(line)))


def _find(name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    return operator.attrgetter(path)(importlib.import_module(module))


if __name__ == "__main__":
    serve(Limits(float(sys.argv[1]), int(sys.argv[2])), *sys.argv[3:])
