"""The nearest keys of queries (NumPy only)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.arrays import Bool, Float32, Int64

ABSENT = -1
_BLOCK = 512  # queries merged at a time


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The k nearest keys of each query, nearest first.

    ``distances``: float32 (queries, k), squared L2; inf where fewer than k were found.
    ``values``: int64 (queries, k), the tokens; −1 where fewer than k were found.
    ``rows``: int64 (queries, k), row numbers in the store over all its segments; −1 likewise. None if not requested.
    """

    distances: Float32
    values: Int64
    rows: Int64 | None = None

    def __len__(self) -> int:
        return len(self.distances)

    def select(self, queries: Any) -> "Neighbours":
        """Return the neighbours of some of the queries."""
        rows = None if self.rows is None else self.rows[queries]
        return Neighbours(self.distances[queries], self.values[queries], rows)

    def nearest(self, k: int) -> "Neighbours":
        """Return the first ``k`` neighbours of each query."""
        rows = None if self.rows is None else self.rows[:, :k]
        return Neighbours(self.distances[:, :k], self.values[:, :k], rows)

    @property
    def found(self) -> Bool:
        """Return whether each query has any neighbours, bool (queries,)."""
        present: Bool = self.values[:, 0] != ABSENT
        return present


def nearest_of_all(parts: Sequence[Neighbours], rows: Sequence[int]) -> Neighbours:
    """Merge several searches for the k nearest keys of each query; ties are in the order of the searches.

    ``rows``: number of rows of each searched store; row numbers of the result count over all of them.
    """
    if len(parts) == 1:
        return parts[0]
    shape = parts[0].distances.shape
    distances, values = np.empty(shape, np.float32), np.empty(shape, np.int64)
    numbers = np.empty(shape, np.int64) if all(part.rows is not None for part in parts) else None
    firsts = np.cumsum([0, *rows[:-1]])
    for begin in range(0, shape[0], _BLOCK):
        block = slice(begin, begin + _BLOCK)
        every = np.concatenate([part.distances[block] for part in parts], axis=1)
        order = np.argsort(every, axis=1, kind="stable")[:, : shape[1]]
        distances[block] = np.take_along_axis(every, order, 1)
        values[block] = np.take_along_axis(np.concatenate([part.values[block] for part in parts], axis=1), order, 1)
        if numbers is not None:
            counted = [_counted_from(int(first), part.rows, block) for part, first in zip(parts, firsts, strict=True)]
            numbers[block] = np.take_along_axis(np.concatenate(counted, axis=1), order, 1)
    return Neighbours(distances, values, numbers)


def _counted_from(first: int, rows: Any, block: slice) -> Int64:
    counted: Int64 = np.where(rows[block] == ABSENT, ABSENT, rows[block] + first)
    return counted
