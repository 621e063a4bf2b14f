"""Search for a few queries, as in generation: each query reads its own lists, all of which are requested first.

The join reads a list once for all its queries, at the cost of grouping the queries and of two passes. A single query
needs its lists as soon as possible, one distance per key, and one selection.
"""

from collections.abc import Sequence

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.indexes.ivfpq.batch import Batch, Lists
from knnstore.indexes.ivfpq.lists import SegmentLists
from knnstore.indexes.ivfpq.located import Located, read_sums
from knnstore.neighbours import ABSENT, Neighbours

FEW = 8
"""Maximum number of queries for which a lookup is faster than a join."""
_MAPS = 96  # maps per array: the operating system can drop their pages, but a process may open only about 1024 files


def prepare(parts: Sequence[SegmentLists]) -> None:
    """Map the lists and read the checksums of their blocks now, rather than with the first queries."""
    arrays = [array for part in parts for array in (part.keys, part.values, part.rows)]
    read_sums([read for array in arrays for read in array.prepare(_MAPS // len(parts))])


def look_up(batch: Batch, lists: Lists, k: int, *, rows: bool) -> Neighbours:
    """Return the k nearest of all keys in the lists that each query probes, with their row numbers if ``rows``."""
    for part in lists.parts:
        for array in (part.keys, part.values, part.rows):
            array.read_here_and_there(_MAPS // len(lists.parts))
    shape = (len(batch), k)
    distances = np.full(shape, np.inf, np.float32)
    values, numbers = np.full(shape, ABSENT, np.int64), np.full(shape, ABSENT, np.int64)
    engine = lists.engine
    for line, (query, probed) in enumerate(zip(batch.queries, batch.probed, strict=True)):
        probes = [
            Located(part, np.sort(probed), [part.keys, part.values, part.rows][: 3 if rows else 2], engine)
            for part in lists.parts
        ]
        squared, owners, places = _all_keys(probes, [_distances(query, probe, lists) for probe in probes])
        nearest = engine.smallest(squared, k)
        distances[line, : len(nearest)] = squared[nearest]
        for number, probe in enumerate(probes):
            ranks = np.flatnonzero(owners[nearest] == number)
            if len(ranks):
                part, at = probe.part, places[nearest[ranks]]
                values[line, ranks] = engine.take(probe.column(part.values), at)
                if rows:
                    numbers[line, ranks] = engine.take(probe.column(part.rows), at).astype(np.int64) + part.first_row
    return Neighbours(distances, values, numbers if rows else None)


def _all_keys(probes: list[Located], distances: list[Float32]) -> tuple[Float32, Int64, Int64]:
    """Return all keys in a query's lists, list by list: distances, indices of their probes, and places in those."""
    if len(probes) == 1:
        return distances[0], np.broadcast_to(np.int64(0), len(distances[0])), np.arange(len(distances[0]))
    order = np.argsort(np.concatenate([probe.spread(probe.numbers) for probe in probes]), kind="stable")
    owners = np.repeat(np.arange(len(probes)), [len(each) for each in distances])
    places = np.concatenate([np.arange(len(each)) for each in distances])
    return np.concatenate(distances)[order], owners[order], places[order]


def _distances(query: Float32, probe: Located, lists: Lists) -> Float32:
    """Return squared distances of all located keys, float32 (keys,); infinite for hidden ones."""
    if not len(probe.numbers):
        return np.empty(0, np.float32)
    probe.ask_for()
    probe.verify()
    keys = probe.column(probe.part.keys)
    centroids = lists.quantiser.centroids[probe.numbers[keys.pieces.ranges]]
    distances = lists.engine.squared_distances(query, keys, probe.part.scales, centroids)
    hidden = probe.hidden()
    if hidden is not None:
        distances[hidden] = np.inf
    return distances
