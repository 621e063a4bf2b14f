"""The continuous cache: a document's own past as a source of its next token (NumPy only).

p_cache(y) = Σ_{i: v_i = y} softmax_i(−d_i / T) over the last C pairs of the same document: Grave et al. 2017, with the
distance and the softmax of the store.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from knnstore.mixing.knn import votes
from knnstore.neighbours import Float32, Int64

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
    for begin, end, low, distances in _remembered_distances(keys, first, before, size):
        some = np.isfinite(distances).any(axis=1)  # (queries,)
        agree = targets[low:end] == targets[begin:end, None]  # (queries, remembered)
        for column, temperature in enumerate(temperatures):
            numerators = votes(distances[some], np.float32(0), temperature)
            hit = np.where(agree[some], numerators, 0).sum(axis=1)
            result[begin - before : end - before][some, column] = hit / numerators.sum(axis=1)
    keep = max(int(first[-1]), len(keys) - size) if len(keys) else 0
    return result, Past(int(document[-1]) if len(keys) else -1, keys[keep:].copy(), targets[keep:].copy())


def _remembered_distances(
    keys: Float32, first: Int64, before: int, size: int
) -> Iterator[tuple[int, int, int, Float32]]:
    """Yield ``begin``, ``end``, ``low`` and the distances of queries ``[begin, end)`` to keys ``[low, end)``.

    Distances are squared L2 less each query's smallest: float32 (end − begin, end − low), inf to a key that isn't among
    the last ``size`` of the query's document. ``first``: int64 (n,), where each key's document begins. The first
    ``before`` keys are no queries.
    """
    centred = keys - keys.mean(axis=0)  # a common offset would only be lost to cancellation
    squares = np.einsum("nd,nd->n", centred, centred)  # (n,)
    for begin in range(before, len(keys), _QUERIES_AT_ONCE):
        end = min(begin + _QUERIES_AT_ONCE, len(keys))
        low = max(int(first[begin]), begin - size)
        span, own = np.arange(low, end), np.arange(begin, end)[:, None]
        remembered = (span < own) & (span >= np.maximum(first[begin:end, None], own - size))
        distances = squares[low:end] - 2 * (centred[begin:end] @ centred[low:end].T)  # less ‖q‖², common to a row
        distances[~remembered] = np.inf
        some = remembered.any(axis=1)
        distances -= np.where(some, distances.min(axis=1), 0)[:, None]
        yield begin, end, low, distances
