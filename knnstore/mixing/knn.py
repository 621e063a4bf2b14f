"""p_kNN: the distribution over tokens that the nearest keys make (NumPy only).

p_kNN(y|x) = Σ_{i: v_i = y} softmax_i(−d_i / T) over the k nearest keys, with squared distances d_i and values v_i
(Khandelwal et al. 2020, eq. 2). A query with fewer neighbours takes the softmax over those that it has; for one without
any every p_kNN is 0, and ``Neighbours.found`` distinguishes it from one whose neighbours disagree.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.neighbours import Neighbours

# Queries at a time: what keeps the votes of 1024 neighbours each within a CPU's cache.
_BLOCK = 512


def votes(distances: Float32, nearest: Any, temperature: float) -> Float32:
    """Return the numerators of softmax(−d / T), exp((d_nearest − d) / T): float32, shaped like ``distances``.

    An absent neighbour, whose distance is inf, has no vote. ``nearest``: each query's smallest distance, which keeps
    the exponents at most 0; broadcast against ``distances``.
    """
    numerators: Float32 = np.exp((nearest - distances) / np.float32(temperature))
    return numerators


def neighbour_weights(neighbours: Neighbours, temperature: float) -> Float32:
    """Return softmax_i(−d_i / T) of each query's neighbours, in any order: float32 (queries, k); 0 where absent."""
    distances = neighbours.distances  # (queries, k)
    weights = votes(distances, _finite(distances.min(axis=1, keepdims=True)), temperature)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return weights


def target_probabilities(
    neighbours: Neighbours, targets: Int64, ks: Sequence[int], temperatures: Sequence[float]
) -> Float32:
    """Return p_kNN of each target for every k and temperature: float32 (queries, ks, temperatures).

    Args:
        neighbours: nearest first.
        targets: int64 (queries,).
        ks: ascending.
        temperatures: T, each positive.
    """
    result = np.empty((len(neighbours), len(ks), len(temperatures)), np.float32)
    for begin in range(0, len(neighbours), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        distances = neighbours.distances[block, : ks[-1]]  # (block, k)
        agree = neighbours.values[block, : ks[-1]] == targets[block, None]  # (block, k); −1 never equals a token
        nearest = _finite(distances[:, :1])  # (block, 1)
        for column, temperature in enumerate(temperatures):
            numerators = votes(distances, nearest, temperature)  # (block, k)
            total = _sums_up_to(numerators, ks)  # (block, ks)
            hit = _sums_up_to(np.where(agree, numerators, np.float32(0)), ks)  # (block, ks)
            result[block, :, column] = np.divide(hit, total, out=np.zeros_like(hit), where=total > 0)
    return result


def typical_spread(distances: Float32) -> float:
    """Return the median over queries of the k-th distance less the first; 1 where all are equal."""
    last = np.where(np.isfinite(distances), distances, -np.inf).max(axis=1)
    spreads = (last - distances[:, 0])[np.isfinite(last)]
    median = float(np.median(spreads)) if len(spreads) else 0.0
    return median if median > 0 else 1.0


def _finite(nearest: Float32) -> Float32:
    """Return the nearest distances, and 0 for the queries that have none: inf − inf isn't a number."""
    finite: Float32 = np.where(np.isfinite(nearest), nearest, np.float32(0))
    return finite


def _sums_up_to(numerators: Float32, ks: Sequence[int]) -> Float32:
    """Return sums of the first k columns, or of all where there are fewer, for every k: (queries, ks)."""
    starts = [0, *(k for k in ks[:-1] if k < numerators.shape[1])]
    sums: Float32 = np.cumsum(np.add.reduceat(numerators, starts, axis=1), axis=1)
    return sums[:, np.minimum(np.arange(len(ks)), len(starts) - 1)]
