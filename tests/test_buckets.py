"""Sizes of arrays: few of them, and never much larger than needed."""

from tsi.models.buckets import bucket_size


def test_sizes_of_arrays_grow_by_at_most_a_half():
    sizes = sorted({bucket_size(n, 16) for n in range(1, 2000)})
    assert sizes[:9] == [16, 32, 48, 64, 96, 128, 192, 256, 384]
    assert all(bucket_size(n, 16) >= n for n in range(1, 2000))
    assert [bucket_size(size, 16) for size in sizes] == sizes
