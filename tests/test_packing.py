"""Packed trees come back exactly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi.engine.packing import pack, unpack


class Numbers(NamedTuple):
    ints: object
    floats: object
    own: dict


def tree():
    return Numbers(
        jnp.arange(12, dtype=jnp.int32).reshape(3, 4),
        jnp.asarray([0.5, -jnp.inf, jnp.nan]),
        {
            "flags": jnp.asarray([[True], [False], [True]]),
            "more": jnp.arange(3, dtype=jnp.int32) + 100,
            "bytes": jnp.asarray([255, 0], jnp.uint8),
            "none": None,
            "empty": jnp.zeros((3, 0)),
            "scalar": jnp.float32(2.5),
        },
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_a_packed_tree_comes_back_with_its_types_and_shapes(compiled):
    packed = (jax.jit(pack) if compiled else pack)(tree())
    assert set(packed.arrays) == {"int32", "float32", "bool", "uint8"}
    found = unpack(packed)
    assert jax.tree.structure(found) == jax.tree.structure(tree())
    for leaf, expected in zip(
        jax.tree.leaves(found), jax.tree.leaves(tree()), strict=True
    ):
        assert leaf.dtype == expected.dtype
        assert leaf.shape == expected.shape
        np.testing.assert_array_equal(leaf, expected)


def test_an_empty_tree_comes_back():
    assert unpack(pack({})) == {}
