"""Few sizes for arrays of many lengths, so that few programs are compiled."""


def bucket_size(length: int, unit: int) -> int:
    """The unit times 1, 2, 3, 4, 6, 8, 12, 16 and so on, at least `length`."""
    size = unit
    while size < length:
        units = size // unit
        if units == 1:
            size *= 2
        elif units & (units - 1):  # 3, 6, 12 ...
            size = size * 4 // 3
        else:
            size = size * 3 // 2
    return size
