"""Sizes of arrays: few of them, and never much larger than needed."""

import itertools

from tsi.models.buckets import bucket_size


def test_few_sizes_hold_every_length():
    sizes = sorted({bucket_size(n, 16) for n in range(1, 2000)})
    assert sizes[:9] == [16, 32, 48, 64, 96, 128, 192, 256, 384]
    assert all(b <= 1.5 * a for a, b in itertools.pairwise(sizes[1:]))
    assert all(bucket_size(n, 16) >= n for n in range(1, 2000))
    assert [bucket_size(size, 16) for size in sizes] == sizes
