"""Turning a table of choices round: who chose each list."""

from collections.abc import Iterator
from typing import Any

import numpy as np

Int64 = np.ndarray[Any, np.dtype[np.int64]]


def by_list(chosen: Int64, lists: int) -> Iterator[tuple[int, Int64]]:
    """Each list that is chosen, with the rows of ``chosen`` (n, choices) that it is in, both in ascending order."""
    flat = np.ascontiguousarray(chosen).reshape(-1)
    order = np.argsort(flat, kind="stable")
    members = order // chosen.shape[1]
    ends = np.cumsum(np.bincount(flat, minlength=lists))
    begin = 0
    for number, end in enumerate(ends.tolist()):
        if end > begin:
            yield number, members[begin:end]
        begin = end
