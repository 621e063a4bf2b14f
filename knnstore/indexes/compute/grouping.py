"""Invert a table of choices: from the lists of each row to the rows of each list."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from knnstore.arrays import Int64


def members_of_lists(chosen: Int64, lists: int) -> tuple[Int64, Int64]:
    """Return members, int64 (n · choices,), and bounds, int64 (lists + 1,), of lists chosen in ``chosen`` (n, choices).

    List i is chosen by rows members[bounds[i] : bounds[i + 1]], ascending.
    """
    flat = np.ascontiguousarray(chosen).reshape(-1)
    order = np.argsort(flat, kind="stable")
    bounds = np.zeros(lists + 1, np.int64)
    np.cumsum(np.bincount(flat, minlength=lists), out=bounds[1:])
    return order // chosen.shape[1], bounds


def by_list(chosen: Int64, lists: int) -> Iterator[tuple[int, Int64]]:
    """Yield each chosen list with the rows of ``chosen`` (n, choices) that contain it, both in ascending order."""
    members, bounds = members_of_lists(chosen, lists)
    for number, (begin, end) in enumerate(pairwise(bounds.tolist())):
        if end > begin:
            yield number, members[begin:end]
