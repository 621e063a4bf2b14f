"""Exact search: every key, streamed in corpus order; needs no index."""

from collections.abc import Callable

import numpy as np
import torch

from knnstore.datastore.store import Datastore
from knnstore.errors import NumericsError, UsageError
from knnstore.index.join import squared_distances
from knnstore.index.nearest import Nearest, query_bytes, spare_slots
from knnstore.index.train import decode
from knnstore.neighbours import Float32, Neighbours

_QUERIES_AT_ONCE = 2048
_SCRATCH_BYTES = 2**26


def exact_search(
    store: Datastore,
    queries: Float32,
    k: int,
    *,
    rows: bool = False,
    memory: int = 2**30,
    progress: Callable[[int], None] | None = None,
) -> Neighbours:
    """The k nearest of all keys of the store, in squared L2 of the stored keys to the queries.

    Args:
        store: a finished store, with or without an index.
        queries: float32 (n, d), finite.
        k: neighbours a query; where the store has fewer keys the rest is padded with inf and −1.
        rows: whether to say the neighbours' row numbers.
        memory: bytes for the working set, besides the queries and the result; fewer of them mean more passes.
        progress: told of finished (query, key) pairs.

    Raises UsageError or NumericsError for queries that don't fit, CorruptStoreError for damaged keys.
    """
    check_queries(queries, store.segments[0].dimension, k)
    sizes = block_sizes(len(queries), query_bytes(k, tags=rows) + 4 * queries.shape[1], memory - _SCRATCH_BYTES)
    found = [_search_block(store, queries[begin:end], k, rows, progress) for begin, end in sizes]
    return concatenate(found)


def check_queries(queries: Float32, dimension: int, k: int) -> None:
    """Raise UsageError or NumericsError unless the queries are finite float32 ``(n, dimension)`` and k is positive."""
    if queries.ndim != 2 or queries.shape[1] != dimension or queries.dtype != np.float32:
        raise UsageError(f"queries are {queries.dtype} {queries.shape}, the keys need float32 (n, {dimension})")
    if not 1 <= k <= 2**20:
        raise UsageError(f"k is {k}: give a number from 1 to {2**20}")
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise NumericsError(f"query {int(np.argmin(finite))} of {len(queries)} isn't finite: the LM overflowed")


def block_sizes(count: int, bytes_each: int, memory: int) -> list[tuple[int, int]]:
    """Even blocks ``[begin, end)`` of ``count`` queries that fit into ``memory`` bytes; at least one block."""
    blocks = max(1, -(-count // max(1, memory // bytes_each)))
    bounds = [count * number // blocks for number in range(blocks + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def concatenate(blocks: list[Neighbours]) -> Neighbours:
    """Neighbours of consecutive blocks of queries."""
    if len(blocks) == 1:
        return blocks[0]
    rows = [block.rows for block in blocks if block.rows is not None]
    return Neighbours(
        np.concatenate([block.distances for block in blocks]),
        np.concatenate([block.values for block in blocks]),
        np.concatenate(rows) if rows else None,
    )


def _search_block(
    store: Datastore, queries: Float32, k: int, rows: bool, progress: Callable[[int], None] | None
) -> Neighbours:
    nearest = Nearest(len(queries), k, tags=rows)
    # the mean is common to queries and keys; without it less is lost to cancellation
    centre = queries.mean(axis=0) if len(queries) else queries.sum(axis=0)
    local = torch.from_numpy(queries - centre)  # (n, d)
    offsets = local.square().sum(1).numpy()
    everyone = np.arange(len(queries))
    first_row = 0
    for segment in store.segments:
        for chunk in range(segment.chunks):
            begin, end = segment.chunk_range(chunk)
            stored, values = segment.keys(begin, end), segment.values(begin, end)
            for start in range(0, end - begin, spare_slots(k)):
                tile = slice(start, min(start + spare_slots(k), end - begin))
                keys = torch.from_numpy(decode(stored[tile], segment.codec.scales) - centre)
                tags = np.arange(tile.start, tile.stop) + (first_row + begin) if rows else None
                for first in range(0, len(queries), _QUERIES_AT_ONCE):
                    block = everyone[first : first + _QUERIES_AT_ONCE]
                    scores = squared_distances(local[first : first + _QUERIES_AT_ONCE], keys).numpy()
                    nearest.offer(block, scores, offsets[block], values[tile], tags)
            if progress:
                progress((end - begin) * len(queries))
        first_row += segment.rows
    return nearest.neighbours()
