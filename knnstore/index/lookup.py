"""A few queries at a time, as generation asks them: each reads its own lists, all of which are asked for first.

The join reads a list once for all its queries and pays for it with a sorting of queries and two passes; a single
query wants its lists at once, one distance a key, and one selection.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.datastore.block_sums import BLOCK_BYTES
from knnstore.datastore.mapped import MappedArray, Pieces
from knnstore.index.compiled import items_at, read_ahead, squared_distances_of_pieces
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
    with ThreadPoolExecutor(_READS) as pool:
        list(pool.map(lambda read: read(), [read for one in arrays for read in one.prepare(_MAPS // len(parts))]))


def look_up(batch: Batch, lists: Lists, k: int, *, rows: bool) -> Neighbours:
    """The k nearest of all keys in the lists that each query probes, with their row numbers if ``rows``."""
    for part in lists.parts:
        for array in (part.keys, part.values, part.rows):
            array.read_here_and_there(_MAPS // len(lists.parts))
    shape = (len(batch), k)
    distances = np.full(shape, np.inf, np.float32)
    values, found = np.full(shape, ABSENT, np.int64), np.full(shape, ABSENT, np.int64)
    for line, (query, probed) in enumerate(zip(batch.queries, batch.probed, strict=True)):
        met = _meet(np.ascontiguousarray(query), np.sort(probed), lists)
        nearest = _smallest(met.distances, k)
        distances[line, : len(nearest)] = met.distances[nearest]
        for number, part in enumerate(lists.parts):
            here = np.flatnonzero(met.parts[nearest] == number) if len(lists.parts) > 1 else np.arange(len(nearest))
            if not len(here):
                continue
            places = met.places[nearest[here]]
            values[line, here] = _take(part.values, places)
            if rows:
                found[line, here] = _take(part.rows, places).astype(np.int64) + part.first_row
    return Neighbours(distances, values, found if rows else None)


@dataclass(frozen=True, slots=True, eq=False)
class _Met:
    """The keys that a query meets, list by list: distance, number of the part, place in the part's list order."""

    distances: Float32
    parts: Int64
    places: Int64


@dataclass(frozen=True, slots=True, eq=False)
class _Ranges:
    """The rows ``[begins, ends)`` of a part in the lists ``numbers``, none of them empty."""

    numbers: Int64
    begins: Int64
    ends: Int64

    @classmethod
    def of(cls, part: SegmentLists, numbers: Int64) -> "_Ranges":
        begins, ends = part.offsets[numbers], part.offsets[numbers + 1]
        some = ends > begins
        return cls(numbers[some], begins[some], ends[some])

    def spread(self, each: Int64) -> Int64:
        """A number of each range, for each of its rows."""
        return np.repeat(each, self.ends - self.begins)

    def places(self) -> Int64:
        counts = self.ends - self.begins
        return np.arange(int(counts.sum())) + self.spread(self.begins - (np.cumsum(counts) - counts))


def _meet(query: Float32, numbers: Int64, lists: Lists) -> _Met:
    ranges = [_Ranges.of(part, numbers) for part in lists.parts]
    pieces = [part.keys.locate(of.begins, of.ends) for part, of in zip(lists.parts, ranges, strict=True)]
    for part, of, of_keys in zip(lists.parts, ranges, pieces, strict=True):
        _ask_for(part, of, of_keys)
    distances, places = [], []
    for part, of, of_keys in zip(lists.parts, ranges, pieces, strict=True):
        part.keys.verify(of_keys)
        here, far = of.places(), _distances(query, part, of, of_keys, units=lists.units)
        hidden = part.hidden_at(here)
        if hidden is not None:
            far[hidden] = np.inf
        distances.append(far)
        places.append(here)
    if len(ranges) == 1:
        return _Met(distances[0], np.zeros(0, np.int64), places[0])
    owners = np.repeat(np.arange(len(ranges)), [len(far) for far in distances])
    order = np.argsort(np.concatenate([of.spread(of.numbers) for of in ranges]), kind="stable")
    return _Met(np.concatenate(distances)[order], owners[order], np.concatenate(places)[order])


def _ask_for(part: SegmentLists, ranges: _Ranges, pieces: Pieces) -> None:
    """Have the disk read the keys of all the lists, and the rest of a list that is met for the first time."""
    if not len(ranges.begins):
        return
    if load_kernel() is None or isinstance(part.keys.path, ObjectPath):
        for begin, end in zip(ranges.begins.tolist(), ranges.ends.tolist(), strict=True):
            part.keys.will_need(begin, end)
        return
    _read_ahead(part.keys, pieces)
    if part.keys.is_verified(pieces):
        return
    sums = part.keys.unread_sums(pieces)
    for array in (part.values, part.rows):
        others = array.locate(ranges.begins, ranges.ends)
        _read_ahead(array, others)
        sums += array.unread_sums(others)
    if sums:
        with ThreadPoolExecutor(_READS) as pool:
            list(pool.map(lambda read: read(), sums))


def _read_ahead(array: MappedArray, pieces: Pieces) -> None:
    """Whole blocks, which are verified as such."""
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    begins = pieces.starts // BLOCK_BYTES * BLOCK_BYTES
    ends = -(-(pieces.starts + pieces.counts * row_bytes) // BLOCK_BYTES) * BLOCK_BYTES
    ends = np.minimum(ends, array.chunk_bytes)
    read_ahead(pieces.addresses - (pieces.starts - begins), ends - begins)


def _distances(query: Float32, part: SegmentLists, ranges: _Ranges, pieces: Pieces, *, units: bool) -> Float32:
    """Squared distances of the ranges' keys, float32 (keys,)."""
    if units:
        assert part.scales is not None
        return squared_distances_of_pieces(query, pieces.addresses, pieces.counts, part.scales)
    stored = [part.keys.rows(*bounds) for bounds in zip(ranges.begins.tolist(), ranges.ends.tolist(), strict=True)]
    if not stored:
        return np.empty(0, np.float32)
    gaps = decode(np.concatenate(stored), part.scales)
    gaps -= query
    return np.asarray(np.einsum("nd,nd->n", gaps, gaps))


def _take(array: MappedArray, places: Int64) -> np.ndarray[Any, Any]:
    """The items of a mapped array at some places."""
    if load_kernel() is None:
        return array.take(places)
    pieces = array.locate(places, places + 1)
    array.verify(pieces)
    return items_at(pieces.addresses, array.dtype)


def _smallest(distances: Float32, k: int) -> Int64:
    """Where the k smallest finite ones lie, nearest first; ties go to the first."""
    if k < len(distances):
        limit = np.partition(distances, k - 1)[k - 1]
        chosen = np.flatnonzero(distances <= limit)
    else:
        chosen = np.arange(len(distances))
    order = chosen[np.argsort(distances[chosen], kind="stable")][:k]
    return order[np.isfinite(distances[order])]
