"""The self-check: the share of the true nearest keys that an index finds."""

from typing import TYPE_CHECKING

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.datastore.store import Datastore
from knnstore.indexes.compute.stored import decode
from knnstore.indexes.exact import exact_search
from knnstore.indexes.plan import Check
from knnstore.neighbours import ABSENT

if TYPE_CHECKING:
    from knnstore.indexes.protocols import OpenIndex

MOST_CHECK_QUERIES = 512


def self_check(store: Datastore, searcher: "OpenIndex", held_out: Float32, k: int, memory: int) -> Check:
    """Search up to 512 of the held-out queries, or stored keys where there are none, exactly and by the index."""
    source = "heldout" if len(held_out) else "stored"
    queries = _spread(held_out) if len(held_out) else _stored_keys(store, searcher.plan.seed)
    true = exact_search(store, queries, k, rows=True, memory=memory).rows
    probed = searcher.search(queries, k, rows=True, memory=memory).rows
    quantised = searcher.search(queries, k, method="quantised", rows=True, memory=memory).rows
    assert true is not None and probed is not None and quantised is not None
    return Check(source, len(queries), k, searcher.nprobe, recall(true, probed), recall(true, quantised))


def recall(true: Int64, found: Int64) -> float:
    """Share of the true rows ``(n, k)`` that are among those found ``(n, k)``; −1 counts for nothing."""
    hits = sum(len(np.intersect1d(t[t != ABSENT], f)) for t, f in zip(true, found, strict=True))
    return round(hits / max(1, int((true != ABSENT).sum())), 6)


def _spread(queries: Float32) -> Float32:
    rows = np.unique(np.linspace(0, len(queries) - 1, min(MOST_CHECK_QUERIES, len(queries))).astype(np.int64))
    return np.ascontiguousarray(queries[rows])


def _stored_keys(store: Datastore, seed: int) -> Float32:
    segment = store.segments[0]
    begin, end = segment.chunk_range(int(np.random.default_rng(seed).integers(segment.chunks)))
    return _spread(decode(segment.keys(begin, end), segment.codec.scales))
