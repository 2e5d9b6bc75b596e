"""Sizes of memory: the unit of budgets, and sizes in words."""

#: Bytes in a gibibyte, the default memory budget of a measurement.
GIB = 2**30


def readable(size: int) -> str:
    """A number of bytes with its unit, such as ``"1.5 GiB"``."""
    return f"{size / GIB:.2g} GiB" if size >= GIB // 2 else f"{size / 2**20:.3g} MiB"
