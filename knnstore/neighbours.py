"""Neighbours, and the distribution over tokens that they make (NumPy only)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Float32 = np.ndarray[Any, np.dtype[np.float32]]
Float64 = np.ndarray[Any, np.dtype[np.float64]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]

ABSENT = -1


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


def target_probabilities(
    neighbours: Neighbours, targets: Int64, ks: Sequence[int], temperatures: Sequence[float]
) -> Float64:
    """p_kNN of each target for every k and temperature: float64 (queries, ks, temperatures).

    p_kNN(y|x) = Σ_{i: v_i = y} softmax_i(−d_i / T) over the k nearest (Khandelwal et al. 2020, eq. 2). A query with
    fewer neighbours takes the softmax over those it has; one with none gets 0 (``has_neighbours`` tells it apart).
    """
    distances = neighbours.distances.astype(np.float64)  # (queries, k)
    agree = neighbours.values == targets[:, None]  # (queries, k); −1 never equals a token
    nearest = np.where(np.isfinite(distances[:, :1]), distances[:, :1], 0.0)
    last = np.asarray(ks) - 1
    result = np.empty((len(distances), len(ks), len(temperatures)))
    for column, temperature in enumerate(temperatures):
        weights = np.exp((nearest - distances) / temperature)  # (queries, k); exp(−inf) = 0 where absent
        total = np.cumsum(weights, axis=1)[:, last]  # (queries, ks)
        hit = np.cumsum(np.where(agree, weights, 0.0), axis=1)[:, last]
        result[:, :, column] = np.divide(hit, total, out=np.zeros_like(hit), where=total > 0)
    return result


def has_neighbours(neighbours: Neighbours) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Bool (queries,): whether a query found any neighbour at all."""
    found: np.ndarray[Any, np.dtype[np.bool_]] = neighbours.values[:, 0] != ABSENT
    return found
