"""The engine of the compiled kernel, which returns what the reference does, bit by bit."""

import mmap
from typing import Any

import numpy as np
import torch

from knnstore.arrays import Float32, Int64, Uint8, Uint32
from knnstore.datastore.mapped import Pieces
from knnstore.files.local import ASKED_AT_ONCE
from knnstore.indexes.compute.coarse import CoarseLists
from knnstore.indexes.compute.kernel import Survivors, address, addresses
from knnstore.indexes.compute.native_filling import NativeFilling
from knnstore.indexes.compute.protocols import Filling, Groups, Numbers, TopK, spare_slots
from knnstore.indexes.compute.reference import ReferenceEngine, ReferenceFilling
from knnstore.indexes.compute.stored import Candidates, Column, Probes, StoredLists
from knnstore.indexes.compute.tiles import offer_tiles, tiles_of

_LARGEST_TAG = 2**32 - 1
_ALIGNMENT = 64
_SLACK = 32  # the kernel reads and writes whole registers, beyond the last item
_FIELDS = ("units", "values", "rows", "hidden", "scales", "count", "list", "first_row", "value_bytes", "row_bytes")
_PIECE = np.dtype([(name, np.int64) for name in _FIELDS])
"""``Piece`` of kernel.c: ``count`` keys of a list in memory; the first five are addresses, 0 for none."""


class NativeEngine(ReferenceEngine):
    """``Engine`` with the compiled kernel."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def scans(self, dtype: np.dtype[Any]) -> bool:
        """Return whether the dtype is int8."""
        return dtype == np.int8

    def top_k(self, thresholds: Float32, k: int, *, values: bool = True, largest_tag: int | None = None) -> TopK:
        """See ``Joins``. The kernel keeps 32-bit tags; the reference takes larger ones."""
        if (largest_tag or 0) > _LARGEST_TAG:
            return super().top_k(thresholds, k, values=values, largest_tag=largest_tag)
        return NativeTopK(self._kernel, thresholds, k, values=values, tags=largest_tag is not None)

    def squared_distances(self, query: Float32, keys: Column, scales: Float32 | None, centroids: Float32) -> Float32:
        """See ``Lookups``."""
        if scales is None:
            return super().squared_distances(query, keys, scales, centroids)
        pieces, dimension = keys.pieces, len(query)
        distances = np.empty(int(pieces.counts.sum()), np.float32)
        scratch = np.empty(self._kernel.scan_bytes(dimension) + _ALIGNMENT, np.uint8)
        inputs, counts = addresses(query, pieces.addresses, pieces.counts), len(pieces.counts)
        outputs = addresses(scales, np.ascontiguousarray(centroids), distances)
        self._kernel.unit_distances_of(*inputs, counts, dimension, *outputs, _aligned(scratch))
        return distances

    def smallest(self, distances: Float32, k: int) -> Int64:
        """See ``Lookups``."""
        distances = np.ascontiguousarray(distances)
        count = len(distances)
        places, work = np.empty(min(k, count), np.int64), np.empty(2 * count, np.uint64)
        finite = self._kernel.smallest(address(distances), count, len(places), address(work), address(places))
        return places[:finite]

    def take(self, column: Column, places: Int64) -> np.ndarray[Any, Any]:
        """See ``Lookups``."""
        piece, row = column.find(places)
        items = column.pieces.addresses[piece] + row * column.dtype.itemsize
        numbers = np.empty(len(places), column.dtype)
        self._kernel.take_items(address(items), len(items), column.dtype.itemsize, address(numbers))
        return numbers

    def read_ahead(self, pieces: Pieces, begins: Int64, ends: Int64) -> None:
        """See ``Reads``. Pages that are already in memory are skipped."""
        firsts, sizes = pieces.addresses - (pieces.starts - begins), ends - begins
        self._kernel.will_need(*addresses(firsts, sizes), len(sizes), mmap.PAGESIZE, ASKED_AT_ONCE)

    def first_damaged(self, data: Uint8, begins: Int64, sizes: Int64, sums: Uint32) -> int | None:
        """See ``Reads``. Other threads can run during the call."""
        if not self._kernel.checksums():
            return super().first_damaged(data, begins, sizes, sums)
        begins, sizes, sums = map(np.ascontiguousarray, (begins, sizes, sums))
        damaged: int = self._kernel.damaged_block(*addresses(data, begins, sizes, sums), len(sums))
        return None if damaged < 0 else damaged

    def filling(self, coarse: CoarseLists, codebooks: Float32, axes: Float32 | None) -> Filling:
        """See ``Engine``."""
        return NativeFilling(self._kernel, ReferenceFilling(coarse, codebooks, axes))


class NativeTopK:
    """``TopK`` with the compiled kernel. Tags are kept as uint32."""

    def __init__(self, kernel: Any, thresholds: Float32, k: int, *, values: bool, tags: bool) -> None:
        self.k = k
        capacity = k + spare_slots(k)
        self._kernel = kernel
        self._thresholds = thresholds.copy()
        shape = (len(thresholds), capacity + _SLACK)
        self._distances = np.empty(shape, np.float32)
        self._values = np.empty(shape, np.uint32) if values else None
        self._tags = np.empty(shape, np.uint32) if tags else None
        self._counts = np.zeros(len(thresholds), np.int64)
        self._work = np.empty(2 * capacity, np.uint64)
        self._scratch = np.empty(0, np.uint8)
        arrays = self._distances, self._values, self._tags, self._counts, self._thresholds, self._work
        self._state = Survivors(*addresses(*arrays), capacity, shape[1], k)

    def offer(self, members: Int64, scores: torch.Tensor, offsets: torch.Tensor, numbers: Numbers) -> None:
        """See ``TopK``."""
        arrays = [*map(np.ascontiguousarray, (scores.numpy(), members, offsets.numpy())), *map(_words, numbers)]
        first, *others = addresses(*arrays)
        self._kernel.offer_scores(self._state, first, *scores.shape, *others)

    def offer_lists(self, groups: Groups, probes: Probes) -> None:
        """See ``TopK``. Int8 keys are compared in one call per group, without a Python loop over lists."""
        for group in groups:
            if all(lists.in_units for lists in group):
                self._scan(np.concatenate([_pieces(lists) for lists in group]), probes)
            else:
                offer_tiles(self, ((tile, tile.keys()) for tile in tiles_of([group], self.k)), probes)

    def _scan(self, pieces: np.ndarray[Any, Any], probes: Probes) -> None:
        pieces = pieces[np.argsort(pieces["list"], kind="stable")]  # all segments of a list before the next list
        dimension = probes.queries.shape[1]
        if not len(self._scratch):
            self._scratch = np.empty(self._kernel.scan_bytes(dimension) + _ALIGNMENT, np.uint8)
        inputs = addresses(probes.centroids, probes.queries, probes.members, probes.bounds)
        self._kernel.scan_lists(self._state, address(pieces), len(pieces), dimension, *inputs, _aligned(self._scratch))

    def counts(self) -> Int64:
        """See ``TopK``."""
        return np.minimum(self._counts, self.k)

    def candidates(self) -> Candidates:
        """See ``TopK``."""
        shape = (len(self._counts), self.k)
        distances = np.empty(shape, np.float32)
        values, tags = (None if kept is None else np.empty(shape, np.int64) for kept in (self._values, self._tags))
        self._kernel.select_nearest(self._state, shape[0], *addresses(distances, values, tags))
        return Candidates(distances, values, tags)


def _aligned(scratch: Uint8) -> int:
    """Return the first address in ``scratch`` that a register can be loaded from at once."""
    return -(-scratch.ctypes.data // _ALIGNMENT) * _ALIGNMENT


def _pieces(lists: StoredLists) -> np.ndarray[Any, Any]:
    """Return the pieces of the lists as a table of _PIECE, (pieces,)."""
    pieces = np.zeros(len(lists.lists), _PIECE)
    pieces["list"], pieces["count"], pieces["scales"] = lists.lists, lists.stored.pieces.counts, address(lists.scales)
    columns = {"units": lists.stored, "values": lists.values, "rows": lists.tags, "hidden": lists.hidden}
    for name, column in columns.items():
        if column is not None:
            pieces[name] = column.pieces.addresses
    if lists.values is not None:
        pieces["value_bytes"] = lists.values.dtype.itemsize
    if lists.tags is not None:
        pieces["row_bytes"], pieces["first_row"] = lists.tags.dtype.itemsize, lists.first_tag
    return pieces


def _words(numbers: np.ndarray[Any, Any] | None) -> Uint32 | None:
    """Return numbers as uint32, padded so that the kernel can read a whole register beyond the last."""
    if numbers is None:
        return None
    words = np.empty(len(numbers) + _SLACK, np.uint32)
    words[: len(numbers)] = numbers
    return words
