"""All paths of a Markov chain, for the known answers of `TabularTarget`."""

import numpy as np
from jaxtyping import Float, Int


def log_of(probabilities: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The logarithm, -inf for zero."""
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def enumerate_paths(
    initial: Float[np.ndarray, "K"],
    transition: Float[np.ndarray, "K K"],
    end: int | None,
    limit: int,
    width: int,
) -> tuple[Int[np.ndarray, "M T"], Float[np.ndarray, "M"]]:
    """Every path of positive probability, [M, T], and its log p, [M].

    Args:
        initial: probabilities of the first symbol.
        transition: probabilities of the next symbol given the last.
        end: the symbol that ends a path, or None.
        limit: number of symbols after which a path is cut.
        width: T, columns of the result, which are -1 after the end of a path.
    """
    paths: list[tuple[tuple[int, ...], float]] = []

    def extend(path: tuple[int, ...], probability: float) -> None:
        has_ended = bool(path) and path[-1] == end
        if len(path) == limit or has_ended:
            paths.append((path, probability))
            return
        row = transition[path[-1]] if path else initial
        for symbol in np.flatnonzero(row):
            extend((*path, int(symbol)), probability * row[symbol])

    extend((), 1.0)
    symbols = np.full((len(paths), width), -1, np.int32)
    for row, (path, _) in enumerate(paths):
        symbols[row, : len(path)] = path
    return symbols, log_of(np.array([probability for _, probability in paths]))
