"""Neighbours, and the distribution over tokens that they make (NumPy only)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Float32 = np.ndarray[Any, np.dtype[np.float32]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]
Bool = np.ndarray[Any, np.dtype[np.bool_]]

ABSENT = -1
# Queries at a time: what keeps the weights of 1024 neighbours each within a CPU's cache.
_BLOCK = 512


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The k nearest keys of each query, nearest first.

    ``distances``: float32 (queries, k), squared L2; inf where fewer than k were found.
    ``values``: int64 (queries, k), the tokens; −1 where fewer than k were found.
    ``rows``: int64 (queries, k), row numbers in the store over all its segments; −1 likewise. None if not asked for.
    """

    distances: Float32
    values: Int64
    rows: Int64 | None = None

    def __len__(self) -> int:
        return len(self.distances)

    def select(self, queries: Any) -> "Neighbours":
        """Those of some of the queries."""
        rows = None if self.rows is None else self.rows[queries]
        return Neighbours(self.distances[queries], self.values[queries], rows)

    def nearest(self, k: int) -> "Neighbours":
        """The first ``k`` of each query."""
        rows = None if self.rows is None else self.rows[:, :k]
        return Neighbours(self.distances[:, :k], self.values[:, :k], rows)

    @property
    def found(self) -> Bool:
        """Bool (queries,): whether a query has any neighbour at all."""
        found: Bool = self.values[:, 0] != ABSENT
        return found


def nearest_of_all(parts: Sequence[Neighbours], rows: Sequence[int]) -> Neighbours:
    """The k nearest of each query out of several searches for its k nearest; among equals the earlier search's first.

    ``rows``: how many rows each of the searched stores has; those of the result are counted over all of them.
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


def agreeing_weights(neighbours: Neighbours, targets: Int64, temperature: float) -> Float32:
    """softmax_i(−d_i / T) of the neighbours whose value is the query's target, 0 of others: float32 (queries, k).

    A query's sum is its target's p_kNN.
    """
    distances = neighbours.distances
    nearest = np.where(np.isfinite(distances[:, :1]), distances[:, :1], np.float32(0))
    weights = np.exp((nearest - distances) / np.float32(temperature))  # exp(−inf) = 0 where absent
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    agreeing: Float32 = np.where(neighbours.values == targets[:, None], weights, np.float32(0))
    return agreeing


def target_probabilities(
    neighbours: Neighbours, targets: Int64, ks: Sequence[int], temperatures: Sequence[float]
) -> Float32:
    """p_kNN of each target for every k (ascending) and temperature: float32 (queries, ks, temperatures).

    p_kNN(y|x) = Σ_{i: v_i = y} softmax_i(−d_i / T) over the k nearest (Khandelwal et al. 2020, eq. 2). A query with
    fewer neighbours takes the softmax over those that it has; one with none gets 0, and ``found`` tells it apart.
    """
    result = np.empty((len(neighbours), len(ks), len(temperatures)), np.float32)
    for begin in range(0, len(neighbours), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        distances = neighbours.distances[block, : ks[-1]]  # (block, k)
        agree = neighbours.values[block, : ks[-1]] == targets[block, None]  # −1 never equals a token
        nearest = np.where(np.isfinite(distances[:, :1]), distances[:, :1], np.float32(0))
        for column, temperature in enumerate(temperatures):
            weights = np.exp((nearest - distances) / np.float32(temperature))  # exp(−inf) = 0 where absent
            total = _sums_up_to(weights, ks)
            hit = _sums_up_to(np.where(agree, weights, np.float32(0)), ks)
            result[block, :, column] = np.divide(hit, total, out=np.zeros_like(hit), where=total > 0)
    return result


def _sums_up_to(weights: Float32, ks: Sequence[int]) -> Float32:
    """Sums of the first k columns, or of all where there are fewer, for every k: (queries, ks)."""
    starts = [0, *(k for k in ks[:-1] if k < weights.shape[1])]
    sums: Float32 = np.cumsum(np.add.reduceat(weights, starts, axis=1), axis=1)
    return sums[:, np.minimum(np.arange(len(ks)), len(starts) - 1)]
