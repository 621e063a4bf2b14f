"""Scan the lists of a join in groups, with the next group requested from the disk in advance."""

from collections.abc import Callable, Iterator

import numpy as np

from knnstore.arrays import Int64
from knnstore.indexes.compute.grouping import members_of_lists
from knnstore.indexes.compute.protocols import TopK
from knnstore.indexes.compute.stored import Column, Probes, StoredLists
from knnstore.indexes.ivfpq.batch import Batch, Lists
from knnstore.indexes.ivfpq.located import Located

_BYTES_AT_ONCE = 2**24  # keys of whole lists per group; this bounds the maps held and the interval of progress reports
_NUMBER_BYTES = 8  # bytes of a key's value and tag


def scan_lists(
    top_k: TopK, batch: Batch, lists: Lists, advance: Callable[[int], None], *, share: float = 1.0, values: bool = True
) -> Int64:
    """Offer a share of each list, from its head, to the queries that probe it; return the keys per list: (nlist,).

    Hidden keys are neither offered nor counted. ``values``: whether keys are offered with their values.
    """
    members, bounds = members_of_lists(batch.probed, len(lists))
    probing = np.diff(bounds)  # number of queries per list
    offered = np.zeros(len(probing), np.int64)

    def groups() -> Iterator[list[StoredLists]]:
        for numbers, group in _located(lists, np.flatnonzero(probing), share, values):
            yield [_stored(lists, located, values) for located in group]
            for located in group:
                hidden = located.hidden()
                offered[located.numbers] += located.counts
                if hidden is not None:
                    np.subtract.at(offered, located.spread(located.numbers)[hidden], 1)
            advance(int(probing[numbers].sum()))

    top_k.offer_lists(groups(), Probes(batch.queries, lists.quantiser.centroids, members, bounds))
    return offered


def _located(lists: Lists, numbers: Int64, share: float, values: bool) -> Iterator[tuple[Int64, list[Located]]]:
    """Yield the lists ``numbers`` in groups, verified."""
    if not len(numbers):
        return
    array = lists.array(lists.parts[0])
    row_bytes = array.dtype.itemsize * array.shape[1] + _NUMBER_BYTES
    # whole lists count even if only a share is read, since the surrounding pages are mapped as well
    group_of = np.cumsum(lists.sizes()[numbers] * row_bytes) // _BYTES_AT_ONCE
    groups = np.split(numbers, np.flatnonzero(np.diff(group_of)) + 1)
    following = _requested(lists, groups[0], share, values)
    for index, group in enumerate(groups):
        current = following
        if index + 1 < len(groups):
            following = _requested(lists, groups[index + 1], share, values)
        for located in current:
            located.verify()
        yield group, current


def _requested(lists: Lists, numbers: Int64, share: float, values: bool) -> list[Located]:
    located = []
    for part in lists.parts:
        arrays = [lists.array(part), *([part.values] if values else []), *([part.rows] if lists.tags == "rows" else [])]
        located.append(Located(part, numbers, arrays, lists.engine, share))
        located[-1].ask_for(again=True)
    return located


def _stored(lists: Lists, located: Located, values: bool) -> StoredLists:
    part, stored = located.part, located.column(lists.array(located.part))
    counts = stored.pieces.counts
    hidden = located.hidden()
    tags = None
    if lists.tags == "rows":
        tags = located.column(part.rows)
    elif lists.tags == "positions":
        tags = Column.of_array(located.positions(), counts)
    return StoredLists(
        located.numbers[stored.pieces.ranges],
        stored,
        lists.residuals(part),
        part.scales,
        # all arrays of a part have the same rows per chunk, so that their pieces match
        located.column(part.values) if values else None,
        tags,
        part.first_row,
        None if hidden is None else Column.of_array(hidden, counts),
    )
