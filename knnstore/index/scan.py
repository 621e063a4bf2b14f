"""The join by the compiled kernel: many lists in one call, so that a list costs Python nothing."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from knnstore.index.compiled import PIECE, CompiledNearest
from knnstore.index.grouping import members_of_lists
from knnstore.index.located import Located
from knnstore.index.quantiser import Int64
from knnstore.index.tiles import Batch, Lists

_BYTES_AT_ONCE = 2**24  # of keys in whole lists: of maps that are held, and how often progress is told


def scan_lists(
    nearest: CompiledNearest, batch: Batch, lists: Lists, share: float, advance: Callable[[int], None]
) -> Int64:
    """Offer a share of each list, from its head, to the queries that probe it; return the keys of each: (nlist,).

    Hidden keys are neither offered nor counted.
    """
    members, bounds = members_of_lists(batch.probed, len(lists.centroids))
    asking = np.diff(bounds)
    offered = np.zeros(len(asking), np.int64)
    for numbers, located in _groups(nearest, lists, np.flatnonzero(asking), share):
        tables = [_pieces(nearest, one) for one in located]
        pieces = np.concatenate([pieces for pieces, _ in tables])
        pieces = pieces[np.argsort(pieces["list"], kind="stable")]  # a list of all parts before the next list
        nearest.offer_lists(pieces, lists.centroids, batch.queries, members, bounds)
        for one, (_, hidden) in zip(located, tables, strict=True):
            offered[one.numbers] += one.counts
            if hidden is not None:
                np.subtract.at(offered, one.spread(one.numbers)[hidden], 1)
        advance(int(asking[numbers].sum()))
    return offered


def _groups(
    nearest: CompiledNearest, lists: Lists, numbers: Int64, share: float
) -> Iterator[tuple[Int64, list[Located]]]:
    """The lists ``numbers``, some at a time, verified; the disk is asked for the next ones before."""
    if not len(numbers):
        return
    row_bytes = lists.centroids.shape[1]
    # of a share too, since the pages around what is touched are mapped along
    group = np.cumsum(lists.sizes()[numbers] * row_bytes) // _BYTES_AT_ONCE
    groups = np.split(numbers, np.flatnonzero(np.diff(group)) + 1)
    following = _asked_for(nearest, lists, groups[0], share)
    for number, here in enumerate(groups):
        located = following
        if number + 1 < len(groups):
            following = _asked_for(nearest, lists, groups[number + 1], share)
        for one in located:
            one.verify()
        yield here, located


def _asked_for(nearest: CompiledNearest, lists: Lists, numbers: Int64, share: float) -> list[Located]:
    found = []
    for part in lists.parts:
        arrays = [part.keys, *([part.values] if nearest.values else []), *([part.rows] if nearest.tags else [])]
        found.append(Located(part, numbers, arrays, share))
        found[-1].ask_for(again=True)
    return found


def _pieces(
    nearest: CompiledNearest, located: Located
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.bool_]] | None]:
    """PIECE (p,) of located lists, and which of their keys are hidden, which they point to as well."""
    part, keys = located.part, located.of(located.part.keys)
    pieces = np.zeros(len(keys.counts), PIECE)
    pieces["units"], pieces["count"], pieces["list"] = keys.addresses, keys.counts, located.numbers[keys.ranges]
    assert part.scales is not None
    pieces["scales"] = part.scales.ctypes.data
    # the arrays of a part have as many rows a chunk, so the pieces are cut at the same rows
    if nearest.values:
        pieces["values"], pieces["value_bytes"] = located.of(part.values).addresses, part.values.dtype.itemsize
    if nearest.tags:
        pieces["rows"], pieces["row_bytes"] = located.of(part.rows).addresses, part.rows.dtype.itemsize
        pieces["first_row"] = part.first_row
    hidden = located.hidden()
    if hidden is not None:
        pieces["hidden"] = hidden.ctypes.data + np.cumsum(keys.counts) - keys.counts
    return pieces, hidden
