"""A few queries at a time, as generation asks them: each reads its own lists, all of which are asked for first.

The join reads a list once for all its queries and pays for it with a sorting of queries and two passes; a single
query wants its lists at once, one distance a key, and one selection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.datastore.mapped import MappedArray
from knnstore.index.batch import Batch, Lists
from knnstore.index.compute.protocols import Engine
from knnstore.index.lists import SegmentLists
from knnstore.index.located import Located, read_sums
from knnstore.neighbours import ABSENT, Float32, Int64, Neighbours

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
    for line, (query, probed) in enumerate(zip(batch.queries, batch.probed, strict=True)):
        probes = [_Probe(part, np.sort(probed), lists.engine, rows) for part in lists.parts]
        met = _met([(probe, probe.distances(query)) for probe in probes])
        nearest = lists.engine.smallest(met.distances, k)
        distances[line, : len(nearest)] = met.distances[nearest]
        for number, probe in enumerate(probes):
            here = np.flatnonzero(met.probes[nearest] == number) if len(probes) > 1 else np.arange(len(nearest))
            if not len(here):
                continue
            places = met.places[nearest[here]] if len(probes) > 1 else nearest
            values[line, here] = probe.items(probe.part.values, places)
            if rows:
                found[line, here] = probe.items(probe.part.rows, places).astype(np.int64) + probe.part.first_row
    return Neighbours(distances, values, found if rows else None)


@dataclass(frozen=True, slots=True, eq=False)
class _Met:
    """The keys that a query meets, list by list: distance, and with several parts the probe and its place there."""

    distances: Float32
    probes: Int64
    places: Int64


def _met(found: list[tuple["_Probe", Float32]]) -> _Met:
    if len(found) == 1:
        return _Met(found[0][1], np.zeros(0, np.int64), np.zeros(0, np.int64))
    far = [distances for _, distances in found]
    order = np.argsort(np.concatenate([probe.lists.spread(probe.lists.numbers) for probe, _ in found]), kind="stable")
    owners = np.repeat(np.arange(len(far)), [len(each) for each in far])
    places = np.concatenate([np.arange(len(each)) for each in far])
    return _Met(np.concatenate(far)[order], owners[order], places[order])


class _Probe:
    """The lists ``numbers`` of a part: a key's *place* is where it is with those that aren't empty laid end to end."""

    def __init__(self, part: SegmentLists, numbers: Int64, engine: Engine, rows: bool) -> None:
        self.part = part
        self.lists = Located(part, numbers, [part.keys, part.values, part.rows][: 3 if rows else 2], engine)
        self._engine = engine

    def distances(self, query: Float32) -> Float32:
        """Return squared distances of all keys, float32 (keys,); infinite for hidden ones."""
        if not len(self.lists.numbers):
            return np.empty(0, np.float32)
        self.lists.ask_for()
        self.lists.verify()
        distances = self._engine.squared_distances(query, self.lists.column(self.part.keys), self.part.scales)
        hidden = self.lists.hidden()
        if hidden is not None:
            distances[hidden] = np.inf
        return distances

    def items(self, array: MappedArray, places: Int64) -> np.ndarray[Any, Any]:
        """Return what an array holds of the keys at some places, (n,)."""
        return self._engine.take(self.lists.column(array), places)
