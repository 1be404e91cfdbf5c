"""Ids of problems, and the random streams that they seed.

An id is an integer or a string. The stream of problem i is

    fold_in(key, i)                                    for an integer i in [0, 2^32),
    fold_in(fold_in(fold_in(key, TAG), w_1), w_2)      for a string,

with w_1 w_2 the first 64 bits of the SHA-256 of its UTF-8. Python's own hash of strings
changes from process to process; this hash does not. "7" and 7 are different ids.
Problems with the same id are refused: they would share a random stream, and their
results would not be independent.
"""

import hashlib
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key, UInt32

from tsi.errors import ConfigurationError
from tsi.problem import Problem
from tsi.step_keys import AnyKey, single_key

LIMIT = 2**32
STRING_TAG = 0x6E616D65
"""Separates the streams of strings from those of integers."""
MAX_NAMED = 5
"""A message names at most this many faulty ids and gives the number of the others."""


class IdWords(NamedTuple):
    """Ids as arrays of a compiled program.

    Attributes:
        words: ``[P, 2]``, the words of a string's hash, or an integer and 0.
        is_string: ``[P]``.
    """

    words: UInt32[Array, "P 2"]
    is_string: Bool[Array, " P"]


def plain_id(id: Any) -> int | str:
    """An id as JSON stores it: numpy integers become Python integers.

    Raises:
        ConfigurationError: it is not a valid id.
    """
    if isinstance(id, str):
        try:
            id.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"The id {id!r} has a surrogate, which is half a character. Give a "
                "string that UTF-8 can encode."
            ) from error
        return str(id)
    try:
        number = operator.index(id)
    except TypeError:
        number = -1
    if isinstance(id, bool) or not 0 <= number < LIMIT:
        raise ConfigurationError(
            f"The id {id!r} is neither a string nor an integer from 0 to {LIMIT - 1}. "
            "Give one of these, such as str(id)."
        )
    return number


def id_order(id: int | str) -> tuple[bool, Any]:
    """A sort key: integers by value, then strings in alphabetical order."""
    return isinstance(id, str), id


def check_ids(problems: Sequence[Problem]) -> None:
    """Refuse problems with an invalid id, or with the same id.

    Raises:
        ConfigurationError: an id is not valid, several problems have the same id, or
            two strings have the same hash.
    """
    places: dict[int | str, list[int]] = {}
    for place, problem in enumerate(problems):
        places.setdefault(plain_id(problem.id), []).append(place)
    shared = {id: positions for id, positions in places.items() if len(positions) > 1}
    if shared:
        listed = "; ".join(
            f"{id!r} at {', '.join(map(str, positions))}"
            for id, positions in list(shared.items())[:MAX_NAMED]
        )
        more = f"; and {len(shared) - MAX_NAMED} more" * (len(shared) > MAX_NAMED)
        raise ConfigurationError(
            "Problems with the same id would get the same random numbers, and these "
            f"ids occur more than once (places counted from 0): {listed}{more}. Give "
            "every problem an id of its own, an integer or a string."
        )
    hashes: dict[tuple[int, int], str] = {}
    for id in places:
        if isinstance(id, str):
            other = hashes.setdefault(hash_words(id), id)
            if other != id:
                raise ConfigurationError(
                    f"The ids {other!r} and {id!r} have the same hash of 64 bits, so "
                    "their problems would get the same random numbers. Rename one."
                )


def hash_words(id: str) -> tuple[int, int]:
    """The two words of a string's hash."""
    digest = hashlib.sha256(id.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def id_words(ids: Iterable[Any]) -> IdWords:
    """P ids, integers or strings, as arrays.

    Raises:
        ConfigurationError: an id is not valid.
    """
    plain_ids = [plain_id(id) for id in ids]
    words = [hash_words(id) if isinstance(id, str) else (id, 0) for id in plain_ids]
    return IdWords(
        jnp.asarray(np.asarray(words, np.uint32).reshape(-1, 2)),
        jnp.asarray([isinstance(id, str) for id in plain_ids], bool),
    )


def problem_keys(key: Key[Array, ""], ids: IdWords) -> Key[Array, " P"]:
    """The key of each problem, from a typed key and the ids; see above."""
    fold, (first, second) = jax.vmap(jax.random.fold_in), ids.words.T
    of_integers = jax.vmap(jax.random.fold_in, (None, 0))(key, first)
    tagged = jax.random.fold_in(key, STRING_TAG)
    of_strings = jax.vmap(jax.random.fold_in, (None, 0))(tagged, first)
    return jnp.where(ids.is_string, fold(of_strings, second), of_integers)


def problem_key(key: AnyKey, id: Any) -> Key[Array, ""]:
    """The key under which an engine runs the problem with an id, integer or string.

    Raises:
        ConfigurationError: the id is not valid, or `key` is not a key.
    """
    return problem_keys(single_key(key), id_words([id]))[0]
