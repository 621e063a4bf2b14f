"""Exact search: every key, streamed in the order in which they lie; needs no index."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from knnstore.datastore.store import Datastore
from knnstore.errors import NumericsError, UsageError
from knnstore.index.compiled import CompiledNearest
from knnstore.index.join import squared_distances
from knnstore.index.nearest import concatenate, query_bytes, spare_slots
from knnstore.index.selection import new_nearest, takes_units
from knnstore.index.threads import query_threads
from knnstore.index.train import decode
from knnstore.neighbours import Float32, Int64, Neighbours

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
    return list(pairwise(count * number // blocks for number in range(blocks + 1)))


def _search_block(
    store: Datastore, queries: Float32, k: int, rows: bool, progress: Callable[[int], None] | None
) -> Neighbours:
    # the mean is common to queries and keys; without it less is lost to cancellation
    centre = queries.mean(axis=0) if len(queries) else np.zeros(queries.shape[1], np.float32)
    first_row = 0
    pairs = len(queries) * max(segment.plan.chunk_rows for segment in store.segments)
    with query_threads(len(queries), pairs) as (pool, shares):
        scans = [_Scan(queries[share], centre, k, store.rows if rows else None) for share in shares]
        for segment, hidden in zip(store.segments, store.hidden, strict=True):
            for chunk in range(segment.chunks):
                found = segment.chunk(chunk)
                keys, values, numbers, count = found.keys, found.values, found.rows, len(found.rows)
                if len(hidden.begins) and (out := hidden.contains(numbers)).any():
                    keys, values, numbers = keys[~out], values[~out], numbers[~out]
                tasks = [(scan, keys, segment.codec.scales, values, first_row + numbers) for scan in scans]
                list(pool.map(lambda task: task[0].offer(*task[1:]), tasks))
                if progress:
                    progress(count * len(queries))
            first_row += segment.rows
        return concatenate(list(pool.map(lambda scan: scan.nearest.neighbours(), scans)))


class _Scan:
    """One thread's queries, float32 (n, d), and their nearest so far. ``centre`` (d,) is near to queries and keys."""

    def __init__(self, queries: Float32, centre: Float32, k: int, largest_row: int | None) -> None:
        unlimited = np.full(len(queries), np.inf, np.float32)
        self.nearest = new_nearest(unlimited, k, largest_tag=largest_row)
        self._queries = np.ascontiguousarray(queries)
        self._centre, self._rows = centre, largest_row is not None
        self._everyone = np.arange(len(queries))

    def offer(
        self, stored: np.ndarray[Any, Any], scales: Float32 | None, values: np.ndarray[Any, Any], numbers: Int64
    ) -> None:
        """Offer stored keys, (rows, d), with their row numbers, to all the queries."""
        tags = numbers if self._rows else None
        if scales is not None and isinstance(self.nearest, CompiledNearest) and takes_units(stored.dtype):
            self.nearest.offer_units(
                self._queries, self._everyone, stored, scales, self._centre, values=values, tags=tags
            )
            return
        size = spare_slots(self.nearest.k)
        for start in range(0, len(stored), size):
            tile = slice(start, start + size)
            keys = torch.from_numpy(decode(stored[tile], scales) - self._centre)
            self._offer_scores(keys, values[tile], None if tags is None else tags[tile])

    def _offer_scores(self, keys: torch.Tensor, values: np.ndarray[Any, Any], tags: Int64 | None) -> None:
        for first in range(0, len(self._everyone), _QUERIES_AT_ONCE):
            block = self._everyone[first : first + _QUERIES_AT_ONCE]
            local = torch.from_numpy(self._queries[block] - self._centre)
            scores, offsets = squared_distances(local, keys).numpy(), local.square().sum(1).numpy()
            self.nearest.offer(block, scores, offsets, values, tags)
