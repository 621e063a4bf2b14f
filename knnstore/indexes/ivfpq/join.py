"""The bulk join: queries are grouped by the lists that they probe, and each list is read once for all of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from threading import Lock

import numpy as np

from knnstore.arrays import Float32, Float64, Int64
from knnstore.indexes.compute.protocols import spare_slots
from knnstore.indexes.compute.stored import Candidates
from knnstore.indexes.ivfpq.batch import Batch, Lists
from knnstore.indexes.ivfpq.scan import scan_lists
from knnstore.indexes.sharing import concatenate, query_threads

_HEAD_SHARE = 1 / 16


def join_in_threads(batch: Batch, lists: Lists, k: int, progress: Callable[[int], None] | None) -> Candidates:
    """Join with the queries divided among as many threads as torch uses; the result is that of ``join``."""
    lock = Lock()

    def advance(count: int) -> None:
        if progress:
            with lock:
                progress(count)

    if not lists.joins.in_threads:
        return join(batch, lists, k, advance)
    # (query, key) pairs per step; the steps of a scan are always long enough
    scanned = lists.joins.scans(lists.array(lists.parts[0]).dtype)
    pairs = math.inf if scanned else float(lists.live()[batch.probed].sum()) / len(lists)
    with query_threads(len(batch), pairs) as (pool, shares):
        return concatenate(list(pool.map(lambda share: join(batch.select(share), lists, k, advance), shares)))


def join(batch: Batch, lists: Lists, k: int, advance: Callable[[int], None]) -> Candidates:
    """Return the k nearest of all keys in the lists that each query probes.

    ``advance`` is called with the number of finished (query, list) pairs.
    """
    held = lists.live()[batch.probed].sum(axis=1)  # number of keys in each query's lists
    nearest, counts = _scan(batch, lists, k, _sampled_thresholds(batch, lists, k, held), advance)
    short = np.flatnonzero(counts < np.minimum(held, k))
    if len(short):  # the threshold of about one query in three thousand is too low
        again, _ = _scan(batch.select(short), lists, k, _unlimited(len(short)), lambda _: None)
        for column, repeated in zip(nearest.columns, again.columns, strict=True):
            if column is not None and repeated is not None:
                column[short] = repeated
    return nearest


def _scan(
    batch: Batch, lists: Lists, k: int, thresholds: Float32, advance: Callable[[int], None]
) -> tuple[Candidates, Int64]:
    """Return the k nearest keys below the thresholds, and the number found for each query."""
    top_k = lists.joins.top_k(thresholds, k, largest_tag=lists.largest_tag)
    scan_lists(top_k, batch, lists, advance)
    return top_k.candidates(), top_k.counts()


def _sampled_thresholds(batch: Batch, lists: Lists, k: int, held: Int64) -> Float32:
    """Return a threshold for each query, float32 (n,), that k of its ``held`` keys are very probably below.

    With a good threshold, the join stores and sorts few keys. It is estimated from a sample: the heads of the lists,
    which are random samples of them. A sample of share f contains f·k of the k nearest keys on average, with a standard
    deviation of at most √(f·k). Its key of rank f·k + 3√(f·k) is therefore beyond the k-th nearest of all keys, except
    for deviations of more than three standard deviations::

        all keys, by distance    ||||||||||||||||||||k|||||||||||||||
        sample of share f        |    |   |    |   |      |  T    |      T: rank f·k + 3√(f·k), the threshold
    """
    room = k + spare_slots(k)
    if int(held.max(initial=0)) <= room:
        return _unlimited(len(batch))
    most = k * lists.sizes(_HEAD_SHARE)[batch.probed].sum(axis=1) / np.maximum(held, 1)
    heads = lists.joins.top_k(_unlimited(len(batch)), int(_safe_ranks(most).max()) + 1, values=False)
    offered = scan_lists(heads, batch, replace(lists, tags=None), lambda _: None, share=_HEAD_SHARE, values=False)
    sampled = offered[batch.probed].sum(axis=1)
    ranks = _safe_ranks(k * sampled / np.maximum(held, 1))
    thresholds = np.take_along_axis(heads.candidates().distances, ranks[:, None], 1)[:, 0]
    thresholds[held <= room] = np.inf
    return thresholds


def _safe_ranks(expected: Float64) -> Int64:
    ranks: Int64 = np.ceil(expected + 3 * np.sqrt(expected)).astype(np.int64)
    return ranks


def _unlimited(queries: int) -> Float32:
    return np.full(queries, np.inf, np.float32)
