"""Exact search: compare with every key, streamed in stored order; needs no index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np

from knnstore.errors import NumericsError, UsageError
from knnstore.indexes.compute.choice import host_engine
from knnstore.indexes.compute.protocols import query_bytes
from knnstore.indexes.compute.stored import Column, Probes, StoredLists, key_residuals
from knnstore.indexes.sharing import block_sizes, concatenate, query_threads

if TYPE_CHECKING:
    from knnstore.arrays import Float32
    from knnstore.datastore.store import Datastore
    from knnstore.indexes.compute.protocols import TopK
    from knnstore.indexes.compute.stored import Candidates
    from knnstore.neighbours import Neighbours

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
    """Return the k nearest of all keys of the store, by the squared L2 distance of the stored keys to the queries.

    Args:
        store: a finished store, with or without an index.
        queries: float32 (n, d), finite.
        k: neighbours per query; if the store has fewer keys, the rest is padded with inf and −1.
        rows: whether to return the neighbours' row numbers.
        memory: bytes for the working set, besides the queries and the result; less memory means more passes.
        progress: called with the number of finished (query, key) pairs.

    Raises UsageError or NumericsError for queries that don't fit, CorruptStoreError for damaged keys.
    """
    check_queries(queries, store.segments[0].dimension, k)
    sizes = block_sizes(len(queries), query_bytes(k, tags=rows) + 4 * queries.shape[1], memory - _SCRATCH_BYTES)
    nearest = concatenate([_search_block(store, queries[begin:end], k, rows, progress) for begin, end in sizes])
    return nearest.neighbours()


def check_queries(queries: Float32, dimension: int, k: int) -> None:
    """Raise UsageError or NumericsError unless the queries are finite float32 ``(n, dimension)`` and k is positive."""
    if queries.ndim != 2 or queries.shape[1] != dimension or queries.dtype != np.float32:
        raise UsageError(f"queries are {queries.dtype} {queries.shape}, the keys need float32 (n, {dimension})")
    if not 1 <= k <= 2**20:
        raise UsageError(f"k is {k}: give a number from 1 to {2**20}")
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise NumericsError(f"query {int(np.argmin(finite))} of {len(queries)} isn't finite: the LM overflowed")


def _search_block(
    store: Datastore, queries: Float32, k: int, rows: bool, progress: Callable[[int], None] | None
) -> Candidates:
    engine, largest_row = host_engine(), store.rows if rows else None
    # queries and keys have about the same mean; subtracting it reduces cancellation
    centre = queries.mean(axis=0) if len(queries) else np.zeros(queries.shape[1], np.float32)
    pairs = len(queries) * max(segment.plan.chunk_rows for segment in store.segments)
    with query_threads(len(queries), pairs) as (pool, shares):
        blocks = [np.ascontiguousarray(queries[share]) for share in shares]
        # a single list, probed by all queries, with the centre as its centroid
        probes = [Probes(each, centre[None], np.arange(len(each)), np.array([0, len(each)])) for each in blocks]
        unlimited = [np.full(len(each), np.inf, np.float32) for each in blocks]
        scans = [engine.top_k(thresholds, k, largest_tag=largest_row) for thresholds in unlimited]
        for rows_of_chunk, lists in _stored_chunks(store, centre, rows):
            if lists is not None:
                list(pool.map(_offer, scans, probes, repeat(lists)))
            if progress:
                progress(rows_of_chunk * len(queries))
        candidates: list[Candidates] = list(pool.map(lambda scan: scan.candidates(), scans))
        return concatenate(candidates)


def _offer(scan: TopK, probes: Probes, lists: StoredLists) -> None:
    scan.offer_lists([[lists]], probes)


def _stored_chunks(store: Datastore, centre: Float32, tagged: bool) -> Iterator[tuple[int, StoredLists | None]]:
    """Yield the number of rows of each chunk, and those that aren't hidden, if any, as a list with centroid ``centre``.

    ``tagged``: whether their row numbers are the tags.
    """
    first_row = 0
    for segment, hidden in zip(store.segments, store.hidden, strict=True):
        scales = segment.codec.scales
        for number in range(segment.chunks):
            chunk = segment.chunk(number)
            arrays = [chunk.keys, chunk.values, chunk.rows]
            if len(hidden.begins) and (removed := hidden.contains(chunk.rows)).any():
                arrays = [array[~removed] for array in arrays]
            lists = None
            if len(arrays[0]):
                keys, values, rows = (Column.of_array(array, np.array([len(array)])) for array in arrays)
                residuals = key_residuals(scales, centre[None])
                lists = StoredLists(
                    np.zeros(1, np.int64), keys, residuals, scales, values, rows if tagged else None, first_row
                )
            yield len(chunk.rows), lists
        first_row += segment.rows
