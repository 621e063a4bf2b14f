"""How a join goes through the lists: some at a time, the disk asked for the next ones before."""

from collections.abc import Callable, Iterator

import numpy as np

from knnstore.arrays import Int64
from knnstore.indexes.compute.grouping import members_of_lists
from knnstore.indexes.compute.protocols import TopK
from knnstore.indexes.compute.stored import Column, Probes, StoredLists
from knnstore.indexes.ivfpq.batch import Batch, Lists
from knnstore.indexes.ivfpq.located import Located

_BYTES_AT_ONCE = 2**24  # of keys in whole lists: of maps that are held, and how often progress is reported
_NUMBER_BYTES = 8  # of a key's value and tag


def scan_lists(
    top_k: TopK, batch: Batch, lists: Lists, advance: Callable[[int], None], *, share: float = 1.0, values: bool = True
) -> Int64:
    """Offer a share of each list, from its head, to the queries that probe it; return the keys of each: (nlist,).

    Hidden keys are neither offered nor counted. ``values``: whether they are offered along.
    """
    members, bounds = members_of_lists(batch.probed, len(lists))
    asking = np.diff(bounds)
    offered = np.zeros(len(asking), np.int64)

    def groups() -> Iterator[list[StoredLists]]:
        for numbers, located in _located(lists, np.flatnonzero(asking), share, values):
            yield [_stored(lists, one, values) for one in located]
            for one in located:
                hidden = one.hidden()
                offered[one.numbers] += one.counts
                if hidden is not None:
                    np.subtract.at(offered, one.spread(one.numbers)[hidden], 1)
            advance(int(asking[numbers].sum()))

    top_k.offer_lists(groups(), Probes(batch.queries, lists.quantiser.centroids, members, bounds))
    return offered


def _located(lists: Lists, numbers: Int64, share: float, values: bool) -> Iterator[tuple[Int64, list[Located]]]:
    """Yield the lists ``numbers``, some at a time, verified."""
    if not len(numbers):
        return
    array = lists.array(lists.parts[0])
    row_bytes = array.dtype.itemsize * array.shape[1] + _NUMBER_BYTES
    # of a share too, since the pages around what is touched are mapped along
    group = np.cumsum(lists.sizes()[numbers] * row_bytes) // _BYTES_AT_ONCE
    groups = np.split(numbers, np.flatnonzero(np.diff(group)) + 1)
    following = _asked_for(lists, groups[0], share, values)
    for number, here in enumerate(groups):
        located = following
        if number + 1 < len(groups):
            following = _asked_for(lists, groups[number + 1], share, values)
        for one in located:
            one.verify()
        yield here, located


def _asked_for(lists: Lists, numbers: Int64, share: float, values: bool) -> list[Located]:
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
        # the arrays of a part have as many rows a chunk, so the pieces are cut at the same rows
        located.column(part.values) if values else None,
        tags,
        part.first_row,
        None if hidden is None else Column.of_array(hidden, counts),
    )
