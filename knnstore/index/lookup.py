"""A few queries at a time, as generation asks them: each reads its own lists, all of which are asked for first.

The join reads a list once for all its queries and pays for it with a sorting of queries and two passes; a single
query wants its lists at once, one distance a key, and one selection.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.datastore.block_sums import BLOCK_BYTES
from knnstore.datastore.mapped import MappedArray, Pieces
from knnstore.index.compiled import damaged_block, items_at, read_ahead, squared_distances_of_pieces
from knnstore.index.join import Batch, Lists
from knnstore.index.kernel import load_kernel
from knnstore.index.lists import SegmentLists
from knnstore.index.train import decode
from knnstore.neighbours import ABSENT, Float32, Int64, Neighbours
from knnstore.objects.path import ObjectPath

FEW = 8
"""So many queries at most are quicker looked up than joined."""
_READS = 16  # of checksums, at the same time
_MAPS = 96  # of each array; their pages are the kernel's to drop, and a process may have some 1024 open files


def prepare(parts: Sequence[SegmentLists]) -> None:
    """Map the lists and read their blocks' checksums now rather than with the first queries."""
    arrays = [array for part in parts for array in (part.keys, part.values, part.rows)]
    _read_sums([read for one in arrays for read in one.prepare(_MAPS // len(parts))])


def look_up(batch: Batch, lists: Lists, k: int, *, rows: bool) -> Neighbours:
    """The k nearest of all keys in the lists that each query probes, with their row numbers if ``rows``."""
    for part in lists.parts:
        for array in (part.keys, part.values, part.rows):
            array.read_here_and_there(_MAPS // len(lists.parts))
    shape = (len(batch), k)
    distances = np.full(shape, np.inf, np.float32)
    values, found = np.full(shape, ABSENT, np.int64), np.full(shape, ABSENT, np.int64)
    for line, (query, probed) in enumerate(zip(batch.queries, batch.probed, strict=True)):
        probes = [_Probe(part, np.sort(probed), rows) for part in lists.parts]
        met = _met([(probe, probe.distances(query, units=lists.units)) for probe in probes])
        nearest = _smallest(met.distances, k)
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
    order = np.argsort(np.concatenate([probe.spread(probe.numbers) for probe, _ in found]), kind="stable")
    owners = np.repeat(np.arange(len(far)), [len(each) for each in far])
    places = np.concatenate([np.arange(len(each)) for each in far])
    return _Met(np.concatenate(far)[order], owners[order], places[order])


class _Probe:
    """The lists ``numbers`` of a part, those that aren't empty, laid end to end: a key's *place* is where it is there.

    All that is read of them is asked for before anything waits, and verified before it is used.
    """

    def __init__(self, part: SegmentLists, numbers: Int64, rows: bool) -> None:
        begins, ends = part.offsets[numbers], part.offsets[numbers + 1]
        some = ends > begins
        self.part, self.numbers = part, numbers[some]
        self._begins, self._counts = begins[some], (ends - begins)[some]
        self._ends = np.cumsum(self._counts)
        arrays = [part.keys, part.values, part.rows][: 3 if rows else 2]
        self._pieces = [(array, array.locate(self._begins, ends[some])) for array in arrays]

    def spread(self, each: Int64) -> Int64:
        """A number of each list, for each of its keys."""
        return np.repeat(each, self._counts)

    def distances(self, query: Float32, *, units: bool) -> Float32:
        """Squared distances of all keys, float32 (keys,); infinite for hidden ones."""
        if not len(self.numbers):
            return np.empty(0, np.float32)
        fresh = [(array, pieces) for array, pieces in self._pieces if not array.is_verified(pieces)]
        self._ask_for(fresh)
        for array, pieces in fresh:
            array.verify(pieces, damaged_block)
        far = self._measured(query, units)
        begins = self._begins - (self._ends - self._counts)
        hidden = self.part.hidden_at(np.arange(len(far)) + self.spread(begins)) if self.part.hides else None
        if hidden is not None:
            far[hidden] = np.inf
        return far

    def _ask_for(self, fresh: list[tuple[MappedArray, Pieces]]) -> None:
        """Have the disk read the keys of all the lists, and the rest of what is met for the first time."""
        if load_kernel() is None or isinstance(self.part.keys.path, ObjectPath):
            for array, _ in self._pieces:
                for begin, count in zip(self._begins.tolist(), self._counts.tolist(), strict=True):
                    array.will_need(begin, begin + count)
            return
        _read_ahead(*self._pieces[0])
        for array, pieces in fresh:
            if array is not self.part.keys:
                _read_ahead(array, pieces)
        _read_sums([read for array, pieces in fresh for read in array.unread_sums(pieces)])

    def _measured(self, query: Float32, units: bool) -> Float32:
        part, (_, keys) = self.part, self._pieces[0]
        if units:
            assert part.scales is not None
            return squared_distances_of_pieces(query, keys.addresses, keys.counts, part.scales)
        bounds = zip(self._begins.tolist(), self._counts.tolist(), strict=True)
        gaps = decode(np.concatenate([part.keys.rows(begin, begin + count) for begin, count in bounds]), part.scales)
        gaps -= query
        return np.asarray(np.einsum("nd,nd->n", gaps, gaps))

    def items(self, array: MappedArray, places: Int64) -> np.ndarray[Any, Any]:
        """What an array holds of the keys at some places, (n,)."""
        if load_kernel() is None:
            lists = np.searchsorted(self._ends, places, side="right")
            return array.take(self._begins[lists] + places - (self._ends - self._counts)[lists])
        pieces = next(pieces for of, pieces in self._pieces if of is array)
        ends = np.cumsum(pieces.counts)
        piece = np.searchsorted(ends, places, side="right")
        within = places - (ends - pieces.counts)[piece]
        return items_at(pieces.addresses[piece] + within * array.dtype.itemsize, array.dtype)


def _read_ahead(array: MappedArray, pieces: Pieces) -> None:
    """Whole blocks, which are verified as such."""
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    begins = pieces.starts // BLOCK_BYTES * BLOCK_BYTES
    ends = -(-(pieces.starts + pieces.counts * row_bytes) // BLOCK_BYTES) * BLOCK_BYTES
    ends = np.minimum(ends, array.chunk_bytes)
    read_ahead(pieces.addresses - (pieces.starts - begins), ends - begins)


def _read_sums(calls: list[Callable[[], None]]) -> None:
    if calls:
        with ThreadPoolExecutor(_READS) as pool:
            list(pool.map(lambda read: read(), calls))


def _smallest(distances: Float32, k: int) -> Int64:
    """Where the k smallest finite ones lie, nearest first; ties go to the first."""
    if k < len(distances):
        limit = np.partition(distances, k - 1)[k - 1]
        chosen = np.flatnonzero(distances <= limit)
    else:
        chosen = np.arange(len(distances))
    order = chosen[np.argsort(distances[chosen], kind="stable")][:k]
    return order[np.isfinite(distances[order])]
