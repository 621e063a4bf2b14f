"""A few queries at a time, as generation asks them: each reads its own lists, all of which are asked for first.

The join reads a list once for all its queries and pays for it with a sorting of queries and two passes; a single
query wants its lists at once, one distance a key, and one selection.
"""

from collections.abc import Sequence

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.indexes.compute.protocols import Lookups
from knnstore.indexes.ivfpq.batch import Batch, Lists
from knnstore.indexes.ivfpq.lists import SegmentLists
from knnstore.indexes.ivfpq.located import Located, read_sums
from knnstore.neighbours import ABSENT, Neighbours

FEW = 8
"""So many queries at most are quicker looked up than joined."""
_MAPS = 96  # of each array; their pages are the kernel's to drop, and a process may have some 1024 open files


def prepare(parts: Sequence[SegmentLists]) -> None:
    """Map the lists and read their blocks' checksums now rather than with the first queries."""
    arrays = [array for part in parts for array in (part.keys, part.values, part.rows)]
    read_sums([read for one in arrays for read in one.prepare(_MAPS // len(parts))])


def look_up(batch: Batch, lists: Lists, k: int, *, rows: bool) -> Neighbours:
    """The k nearest of all keys in the lists that each query probes, with their row numbers if ``rows``."""
    for part in lists.parts:
        for array in (part.keys, part.values, part.rows):
            array.read_here_and_there(_MAPS // len(lists.parts))
    shape = (len(batch), k)
    distances = np.full(shape, np.inf, np.float32)
    values, found = np.full(shape, ABSENT, np.int64), np.full(shape, ABSENT, np.int64)
    engine = lists.engine
    for line, (query, probed) in enumerate(zip(batch.queries, batch.probed, strict=True)):
        probes = [
            Located(part, np.sort(probed), [part.keys, part.values, part.rows][: 3 if rows else 2], engine)
            for part in lists.parts
        ]
        far, owners, places = _met(probes, [_distances(query, probe, engine) for probe in probes])
        nearest = engine.smallest(far, k)
        distances[line, : len(nearest)] = far[nearest]
        for number, probe in enumerate(probes):
            here = np.flatnonzero(owners[nearest] == number)
            if len(here):
                part, at = probe.part, places[nearest[here]]
                values[line, here] = engine.take(probe.column(part.values), at)
                if rows:
                    found[line, here] = engine.take(probe.column(part.rows), at).astype(np.int64) + part.first_row
    return Neighbours(distances, values, found if rows else None)


def _met(probes: list[Located], distances: list[Float32]) -> tuple[Float32, Int64, Int64]:
    """Return the keys that a query meets, list by list: the distance, the probe, and the place in what it located."""
    if len(probes) == 1:
        return distances[0], np.broadcast_to(np.int64(0), len(distances[0])), np.arange(len(distances[0]))
    order = np.argsort(np.concatenate([probe.spread(probe.numbers) for probe in probes]), kind="stable")
    owners = np.repeat(np.arange(len(probes)), [len(each) for each in distances])
    places = np.concatenate([np.arange(len(each)) for each in distances])
    return np.concatenate(distances)[order], owners[order], places[order]


def _distances(query: Float32, probe: Located, engine: Lookups) -> Float32:
    """Return squared distances of all located keys, float32 (keys,); infinite for hidden ones."""
    if not len(probe.numbers):
        return np.empty(0, np.float32)
    probe.ask_for()
    probe.verify()
    distances = engine.squared_distances(query, probe.column(probe.part.keys), probe.part.scales)
    hidden = probe.hidden()
    if hidden is not None:
        distances[hidden] = np.inf
    return distances
