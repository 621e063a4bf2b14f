"""The bulk join: queries are grouped by the lists that they probe, and each list is read once for all of them.

Distances come from a matrix product of residuals: queries and keys both minus the list's centroid, which loses less
to cancellation than whole vectors would. Where the compiled kernel can, it multiplies int8 keys as they are stored.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import torch

from knnstore.index.compiled import CompiledNearest
from knnstore.index.nearest import Nearest, concatenate, spare_slots
from knnstore.index.quantiser import Float32, Int64
from knnstore.index.scan import scan_lists
from knnstore.index.selection import new_nearest
from knnstore.index.tensors import TensorNearest
from knnstore.index.threads import query_threads
from knnstore.index.tiles import Batch, Lists, Tile, probed_tiles
from knnstore.neighbours import Neighbours

_QUERIES_AT_ONCE = 2048
_HEAD_SHARE = 1 / 16
_FEWEST_ROWS = 16


def join_in_threads(batch: Batch, lists: Lists, k: int, progress: Callable[[int], None] | None) -> Neighbours:
    """``join`` with the queries shared out to as many threads as torch uses; the result is the same."""
    lock = Lock()

    def advance(count: int) -> None:
        if progress:
            with lock:
                progress(count)

    if lists.device is not None:  # one queue of work for the device
        return join(batch, lists, k, advance)
    # of a query and a key, in one step: the kernel's are long enough
    pairs = math.inf if lists.units else float(lists.live()[batch.probed].sum()) / len(lists.centroids)
    with query_threads(len(batch), pairs) as (pool, shares):
        return concatenate(list(pool.map(lambda share: join(batch.select(share), lists, k, advance), shares)))


def join(batch: Batch, lists: Lists, k: int, advance: Callable[[int], None]) -> Neighbours:
    """The k nearest of all keys in the lists that each query probes; ``advance`` is told of (query, list) pairs."""
    held = lists.live()[batch.probed].sum(axis=1)  # keys that each query meets
    neighbours, found = _scan(batch, lists, k, _sampled_thresholds(batch, lists, k, held), advance)
    short = np.flatnonzero(found < np.minimum(held, k))
    if len(short):  # about one in three thousand has a threshold that was too low
        again, _ = _scan(batch.select(short), lists, k, _unlimited(len(short)), lambda _: None)
        neighbours.distances[short], neighbours.values[short] = again.distances, again.values
        if neighbours.rows is not None and again.rows is not None:
            neighbours.rows[short] = again.rows
    return neighbours


def _scan(
    batch: Batch, lists: Lists, k: int, thresholds: Float32, advance: Callable[[int], None]
) -> tuple[Neighbours, Int64]:
    """The k nearest keys below the thresholds, and how many of the k there are for each query."""
    nearest = _survivors(thresholds, k, lists)
    _offer_lists(nearest, batch, lists, 1.0, advance)
    return nearest.neighbours(), nearest.found()


def _sampled_thresholds(batch: Batch, lists: Lists, k: int, held: Int64) -> Float32:
    """A distance for each query, float32 (n,), that k of the ``held`` keys it meets are very likely to lie below.

    The head of each list is a fair sample of it. Of a share f of the keys the f·k + 3√(f·k)-th nearest lies beyond
    the k-th nearest of all, but for three standard deviations.
    """
    room = k + spare_slots(k)
    if int(held.max(initial=0)) <= room:
        return _unlimited(len(batch))
    most = k * lists.sizes(_HEAD_SHARE)[batch.probed].sum(axis=1) / np.maximum(held, 1)
    untold = replace(lists, tags=None)
    heads = _survivors(_unlimited(len(batch)), int(_safe_ranks(most).max()) + 1, untold, values=False)
    offered = _offer_lists(heads, batch, untold, _HEAD_SHARE, lambda _: None)
    sampled = offered[batch.probed].sum(axis=1)
    ranks = _safe_ranks(k * sampled / np.maximum(held, 1))
    thresholds = np.take_along_axis(heads.neighbours().distances, ranks[:, None], 1)[:, 0]
    thresholds[held <= room] = np.inf
    return thresholds


def _survivors(
    thresholds: Float32, k: int, lists: Lists, *, values: bool = True
) -> Nearest | CompiledNearest | TensorNearest:
    if lists.device is not None:
        return TensorNearest(thresholds, k, lists.device, tags=lists.tags is not None)
    return new_nearest(thresholds, k, values=values, largest_tag=lists.largest_tag)


def _safe_ranks(expected: np.ndarray[Any, np.dtype[np.float64]]) -> Int64:
    ranks: Int64 = np.ceil(expected + 3 * np.sqrt(expected)).astype(np.int64)
    return ranks


def _offer_lists(
    nearest: Nearest | CompiledNearest | TensorNearest,
    batch: Batch,
    lists: Lists,
    share: float,
    advance: Callable[[int], None],
) -> Int64:
    """Offer a share of each list, from its head, to the queries that probe it; return the keys of each: (nlist,)."""
    if lists.units and isinstance(nearest, CompiledNearest):
        return scan_lists(nearest, batch, lists, share, advance)
    offered = np.zeros(len(lists.centroids), np.int64)
    asked = lists.place(torch.from_numpy(batch.queries))
    for tile, members, residuals in probed_tiles(batch, lists, share, spare_slots(nearest.k), advance):
        offered[tile.number] += _offer(nearest, asked, lists, tile, members, residuals=residuals)
    return offered


def _offer(
    nearest: Nearest | CompiledNearest | TensorNearest,
    asked: torch.Tensor,
    lists: Lists,
    tile: Tile,
    members: Int64,
    *,
    residuals: torch.Tensor | None,
) -> int:
    """Offer a tile's keys that aren't hidden to the queries that probe its list; return how many there are.

    ``asked``: all queries (n, d); ``residuals``: the tile's, if they have been read.
    """
    rows = tile.part.kept(tile.begin, tile.end)
    kept: slice | Int64 = slice(None) if rows is None else rows
    values = tile.part.values.rows(tile.begin, tile.end)[kept]
    if not len(values):
        return 0
    tags = lists.tags(tile)[kept] if lists.tags else None
    residuals = lists.residuals(tile) if residuals is None else residuals
    if rows is not None:
        residuals = residuals[lists.place(torch.from_numpy(rows))]
    middle = lists.place(torch.from_numpy(lists.centroids[tile.number]))
    for begin in range(0, len(members), _QUERIES_AT_ONCE):
        block = members[begin : begin + _QUERIES_AT_ONCE]
        local = asked[lists.place(torch.from_numpy(block))] - middle  # (m, d)
        scores, offsets = squared_distances(local, residuals), local.square().sum(1)
        if isinstance(nearest, TensorNearest):
            nearest.offer(block, scores, offsets, values, tags)
        else:
            nearest.offer(block, scores.numpy(), offsets.numpy(), values, tags)
    return len(values)


def _unlimited(queries: int) -> Float32:
    return np.full(queries, np.inf, np.float32)


def squared_distances(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """‖k‖² − 2 q·k, which is the squared distance less ‖q‖²: float32 (m, t) of queries (m, d) and keys (t, d).

    The bits of a distance don't depend on what else is in the product: a few rows would be multiplied by other
    routines, that round otherwise, so there are never fewer than ``_FEWEST_ROWS``.
    """
    m, t = len(queries), len(keys)
    if min(m, t) >= _FEWEST_ROWS:
        return torch.addmm(keys.square().sum(1), queries, keys.T, alpha=-2)
    queries, keys = _at_least(queries, _FEWEST_ROWS), _at_least(keys, _FEWEST_ROWS)
    return torch.addmm(keys.square().sum(1), queries, keys.T, alpha=-2)[:m, :t].contiguous()


def _at_least(rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, max(0, count - len(rows))))
