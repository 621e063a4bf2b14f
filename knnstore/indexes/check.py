"""The self-check: the recall of an index, measured against exact search."""

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
    """Return the recall of the index for up to 512 held-out queries, or stored keys if there are no such queries."""
    source = "heldout" if len(held_out) else "stored"
    queries = _spread(held_out) if len(held_out) else _stored_keys(store, searcher.plan.seed)
    true = exact_search(store, queries, k, rows=True, memory=memory).rows
    probed = searcher.search(queries, k, rows=True, memory=memory).rows
    quantised = searcher.search(queries, k, method="quantised", rows=True, memory=memory).rows
    assert true is not None and probed is not None and quantised is not None
    return Check(source, len(queries), k, searcher.nprobe, recall(true, probed), recall(true, quantised))


def recall(true: Int64, found: Int64) -> float:
    """Return the share of the true rows ``(n, k)`` that are among the rows found ``(n, k)``, ignoring −1."""
    hits = sum(len(np.intersect1d(t[t != ABSENT], f)) for t, f in zip(true, found, strict=True))
    return round(hits / max(1, int((true != ABSENT).sum())), 6)


def _spread(queries: Float32) -> Float32:
    rows = np.unique(np.linspace(0, len(queries) - 1, min(MOST_CHECK_QUERIES, len(queries))).astype(np.int64))
    return np.ascontiguousarray(queries[rows])


def _stored_keys(store: Datastore, seed: int) -> Float32:
    segment = store.segments[0]
    begin, end = segment.chunk_range(int(np.random.default_rng(seed).integers(segment.chunks)))
    return _spread(decode(segment.keys(begin, end), segment.codec.scales))
