"""How many ancestors the final particles have."""

import jax
import numpy as np

from tsi.accuracy.degeneracy import common_past, lineages, unique_ancestors
from tsi.accuracy.evidence_variance import genealogy

ANCESTORS = np.array([[0, 1, 2, 3], [1, 1, 3, 3], [0, 0, 2, 1]])


def test_lineages_follow_parents_backwards():
    np.testing.assert_array_equal(
        lineages(ANCESTORS), [[1, 1, 3, 1], [0, 0, 2, 1], [0, 1, 2, 3]]
    )


def test_unique_ancestors_count_who_has_descendants_at_the_end():
    np.testing.assert_array_equal(unique_ancestors(ANCESTORS), [2, 3, 4])


def test_the_first_count_is_that_of_the_eves():
    rng = np.random.default_rng(0)
    eves_of = jax.jit(lambda ancestors: genealogy(ancestors).unique_eves[-1])
    for _ in range(50):
        ancestors = np.vstack([np.arange(9), rng.integers(0, 9, (6, 9))])
        assert unique_ancestors(ancestors)[0] == int(eves_of(ancestors))


def test_texts_part_where_their_steps_do():
    texts = [["a", "b", "c"], ["a", "x"], ["a", "b", "d"], ["z"]]
    expected = [[0, 1, 2, 3], [0, 0, 0, 3], [0, 1, 0, 3]]
    past = common_past(texts)
    np.testing.assert_array_equal(past, expected)
    np.testing.assert_array_equal(unique_ancestors(past), [2, 3, 4])
