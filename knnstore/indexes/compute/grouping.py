"""Turning a table of choices round: who chose each list."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from knnstore.arrays import Int64


def members_of_lists(chosen: Int64, lists: int) -> tuple[Int64, Int64]:
    """Rows of ``chosen`` (n, choices) by the list that they are in, ascending: list i has members[bounds[i] :
    bounds[i + 1]] of the two that are returned, int64 (n · choices,) and (lists + 1,)."""
    flat = np.ascontiguousarray(chosen).reshape(-1)
    order = np.argsort(flat, kind="stable")
    bounds = np.zeros(lists + 1, np.int64)
    np.cumsum(np.bincount(flat, minlength=lists), out=bounds[1:])
    return order // chosen.shape[1], bounds


def by_list(chosen: Int64, lists: int) -> Iterator[tuple[int, Int64]]:
    """Each list that is chosen, with the rows of ``chosen`` (n, choices) that it is in, both in ascending order."""
    members, bounds = members_of_lists(chosen, lists)
    for number, (begin, end) in enumerate(pairwise(bounds.tolist())):
        if end > begin:
            yield number, members[begin:end]
