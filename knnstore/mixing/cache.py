"""The continuous cache: a document's own past as a source of its next token (NumPy only).

p_cache(y) = Σ_{i: v_i = y} softmax_i(−d_i / T) over the last C pairs of the same document: Grave et al. 2017, with the
distance and the softmax of the store.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.mixing.knn import votes
from knnstore.neighbours import ABSENT, Neighbours

_QUERIES_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """The last pairs of the document that the next block may go on with: keys float32 (n, d), values int64 (n,)."""

    document: int
    keys: Float32
    values: Int64


@dataclass(frozen=True, slots=True, eq=False)
class CacheScores:
    """p_cache of the tokens with which n positions of a text go on.

    ``p``: float32 (n, temperatures), NaN where a document has no past; a column for each of ``temperatures``.
    """

    p: Float32
    temperatures: tuple[float, ...]

    def at(self, temperature: float) -> Float32:
        """Return p_cache at one of the temperatures: float32 (n,)."""
        column: Float32 = self.p[:, self.temperatures.index(temperature)]
        return column


def cache_probabilities(
    keys: Float32, targets: Int64, document: Int64, past: Past | None, *, size: int, temperatures: Sequence[float]
) -> tuple[Float32, Past]:
    """Return p_cache of each target for every temperature, NaN where a document has no past, and the block's past.

    Args:
        keys: float32 (n, d), of consecutive tokens, each the query of its own token and a key for the later ones.
        targets: int64 (n,), the tokens. document: int64 (n,), ascending.
        past: what the block before this one returned, or None.
        size: C, pairs that are remembered.
        temperatures: T, each positive.

    Returns:
        float32 (n, temperatures), and the past of the last document.
    """
    before = 0
    if past is not None and len(document) and past.document == document[0]:
        before = len(past.keys)
        keys, targets = np.concatenate([past.keys, keys]), np.concatenate([past.values, targets])
        document = np.concatenate([np.full(before, past.document), document])
    first = np.searchsorted(document, document)  # where each token's document begins
    result = np.full((len(keys) - before, len(temperatures)), np.nan, np.float32)
    for queries, low, distances in _remembered_distances(keys, first, np.arange(before, len(keys)), size):
        some = np.isfinite(distances).any(axis=1)  # (queries,)
        agree = targets[low : low + distances.shape[1]] == targets[queries, None]  # (queries, span)
        for column, temperature in enumerate(temperatures):
            numerators = votes(distances[some], np.float32(0), temperature)
            hit = np.where(agree[some], numerators, 0).sum(axis=1)
            result[queries[some] - before, column] = hit / numerators.sum(axis=1)
    keep = max(int(first[-1]), len(keys) - size) if len(keys) else 0
    return result, Past(int(document[-1]) if len(keys) else -1, keys[keep:].copy(), targets[keep:].copy())


def cache_neighbours(keys: Float32, values: Int64, first: Int64, queries: Int64, size: int) -> Neighbours:
    """Return the remembered pairs of some positions of a text, as neighbours in the order of the text.

    Args:
        keys: float32 (n, d), of consecutive positions. values: int64 (n,), the token that followed each.
        first: int64 (n,), where each position's document begins.
        queries: int64 (q,), the positions that look back.
        size: C, pairs that are remembered.
    """
    parts = [
        Neighbours(distances, np.where(np.isfinite(distances), values[low : low + distances.shape[1]], ABSENT))
        for _, low, distances in _remembered_distances(keys, first, queries, size)
    ]
    return stacked(parts)


def stacked(parts: Sequence[Neighbours]) -> Neighbours:
    """Return the neighbours of several searches for different queries, as many columns as the widest has."""
    width = max((part.values.shape[1] for part in parts), default=1)
    total = sum(map(len, parts))
    distances, values = np.full((total, width), np.inf, np.float32), np.full((total, width), ABSENT)
    end = 0
    for part in parts:
        begin, end = end, end + len(part)
        distances[begin:end, : part.values.shape[1]] = part.distances
        values[begin:end, : part.values.shape[1]] = part.values
    return Neighbours(distances, values)


def _remembered_distances(
    keys: Float32, first: Int64, queries: Int64, size: int
) -> Iterator[tuple[Int64, int, Float32]]:
    """Yield some of the queries, ``low``, and their distances to the keys from ``low`` on.

    Distances are squared L2 less each query's smallest: float32 (some queries, span), inf to a key that isn't among the
    last ``size`` before the query in its document. ``first``: int64 (n,), where each key's document begins.
    """
    centred = keys - keys.mean(axis=0)  # a common offset would only be lost to cancellation
    squares = np.einsum("nd,nd->n", centred, centred)  # (n,)
    for begin in range(0, len(queries), _QUERIES_AT_ONCE):
        some = queries[begin : begin + _QUERIES_AT_ONCE]
        earliest = np.maximum(first[some], some - size)  # (some,)
        low, end = int(earliest.min()), int(some.max()) + 1
        span = np.arange(low, end)
        remembered = (span < some[:, None]) & (span >= earliest[:, None])
        distances = squares[low:end] - 2 * (centred[some] @ centred[low:end].T)  # less ‖q‖², common to a row
        distances[~remembered] = np.inf
        distances -= np.where(remembered.any(axis=1), distances.min(axis=1), 0)[:, None]
        yield some, low, distances
