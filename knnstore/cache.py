"""The continuous cache: a document's own past as a source of its next token (NumPy only).

Grave et al. 2017, with the distance and the softmax of the store: p_cache(y) = Σ_{i: v_i = y} softmax_i(−d_i / T) over
the last C pairs of the same document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.neighbours import Float32, Int64

_QUERIES_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """The last pairs of the document that the next block may go on with: keys float32 (n, d), values int64 (n,)."""

    document: int
    keys: Float32
    values: Int64


def cache_probabilities(
    keys: Float32, targets: Int64, document: Int64, past: Past | None, *, size: int, temperatures: Sequence[float]
) -> tuple[Float32, Past]:
    """p_cache of each target for every temperature, NaN where a document has no past, and what the next block needs.

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
    centred = keys - keys.mean(axis=0)  # without what is common to all less is lost to cancellation
    squares = np.einsum("nd,nd->n", centred, centred)
    result = np.full((len(keys) - before, len(temperatures)), np.nan, np.float32)
    for begin in range(before, len(keys), _QUERIES_AT_ONCE):
        end = min(begin + _QUERIES_AT_ONCE, len(keys))
        low = max(int(first[begin]), begin - size)
        span = np.arange(low, end)
        own = np.arange(begin, end)[:, None]
        remembered = (span < own) & (span >= np.maximum(first[begin:end, None], own - size))
        distances = squares[low:end] - 2 * (centred[begin:end] @ centred[low:end].T)  # less ‖q‖², common to a row
        distances[~remembered] = np.inf
        some = remembered.any(axis=1)
        distances -= np.where(some, distances.min(axis=1), 0)[:, None]
        agree = targets[low:end] == targets[begin:end, None]
        for column, temperature in enumerate(temperatures):
            weights = np.exp(-distances[some] / np.float32(temperature))
            hit = np.where(agree[some], weights, 0).sum(axis=1)
            result[begin - before : end - before][some, column] = hit / weights.sum(axis=1)
    keep = max(int(first[-1]), len(keys) - size) if len(keys) else 0
    return result, Past(int(document[-1]) if len(keys) else -1, keys[keep:].copy(), targets[keep:].copy())


def cache_distribution(query: Any, past: Past, temperature: float, vocabulary: int) -> Float32:
    """p_cache of every token for one query (d,): float32 (vocabulary,), all zero where there is no past."""
    if not len(past.keys):
        return np.zeros(vocabulary, np.float32)
    distances = np.square(past.keys - query).sum(axis=1)
    weights = np.exp((distances.min() - distances) / np.float32(temperature))
    return np.bincount(past.values, weights / weights.sum(), minlength=vocabulary).astype(np.float32)
