"""The reference engine: NumPy selects, torch multiplies, faiss assigns and encodes. It needs no compiler."""

from functools import cached_property
from typing import Any

import faiss
import numpy as np
import torch

from knnstore.arrays import Float32, Int64, Uint8, Uint32, Uint64
from knnstore.datastore.block_sums import first_damaged
from knnstore.datastore.mapped import Pieces
from knnstore.indexes.compute.coarse import CoarseLists
from knnstore.indexes.compute.protocols import Filling, Groups, Numbers, TopK, spare_slots
from knnstore.indexes.compute.rotation import rotate
from knnstore.indexes.compute.stored import Candidates, Column, Probes, decode
from knnstore.indexes.compute.tiles import offer_tiles, tiles_of, unit_distances
from knnstore.neighbours import ABSENT

_ROWS_AT_ONCE = 512
_EMPTY = np.uint64(2**64 - 1)
_SLOT = np.uint64(2**32 - 1)
_SHIFT = np.uint64(32)


class ReferenceEngine:
    """The reference ``Engine``; other engines inherit the operations that they can't speed up."""

    in_threads = True

    def scans(self, dtype: np.dtype[Any]) -> bool:
        """Return False: keys are decoded tile by tile."""
        return False

    def memory(self, allowed: int) -> int:
        """Return ``allowed``."""
        return allowed

    def top_k(self, thresholds: Float32, k: int, *, values: bool = True, largest_tag: int | None = None) -> TopK:
        """See ``Joins``."""
        return ReferenceTopK(thresholds, k, values=values, tags=largest_tag is not None)

    def squared_distances(self, query: Float32, keys: Column, scales: Float32 | None, centroids: Float32) -> Float32:
        """See ``Lookups``."""
        counts = keys.pieces.counts
        distances = np.empty(int(counts.sum()), np.float32)
        # one piece at a time, so that its decoded keys are still in the processor's cache for the product
        for piece, (count, end) in enumerate(zip(counts.tolist(), np.cumsum(counts).tolist(), strict=True)):
            stored = keys.rows(piece)
            if scales is None:
                gaps = decode(stored, None)
                gaps -= query
                np.einsum("nd,nd->n", gaps, gaps, out=distances[end - count : end])
                continue
            units, widths, centroid = map(torch.from_numpy, (stored, scales, centroids[piece]))
            local = torch.from_numpy(query)[None] - centroid
            distances[end - count : end] = unit_distances(local, units, widths, centroid)[0].clamp_(min=0).numpy()
        return distances

    def smallest(self, distances: Float32, k: int) -> Int64:
        """See ``Lookups``."""
        if k < len(distances):
            limit = np.partition(distances, k - 1)[k - 1]
            chosen = np.flatnonzero(distances <= limit)
        else:
            chosen = np.arange(len(distances))
        order = chosen[np.argsort(distances[chosen], kind="stable")][:k]
        return order[np.isfinite(distances[order])]

    def take(self, column: Column, places: Int64) -> np.ndarray[Any, Any]:
        """See ``Lookups``."""
        numbers = np.empty(len(places), column.dtype)
        piece, row = column.find(places)
        chunks = column.pieces.chunks[piece]
        at = column.pieces.starts[piece] // column.dtype.itemsize + row
        for chunk, mapped in column.pieces.maps.items():
            in_chunk = chunks == chunk
            numbers[in_chunk] = np.frombuffer(mapped.memory, column.dtype)[at[in_chunk]]
        return numbers

    def read_ahead(self, pieces: Pieces, begins: Int64, ends: Int64) -> None:
        """See ``Reads``."""
        for chunk, begin, end in np.stack([pieces.chunks, begins, ends], axis=1).tolist():
            pieces.maps[chunk].will_need(begin, end)

    def first_damaged(self, data: Uint8, begins: Int64, sizes: Int64, sums: Uint32) -> int | None:
        """See ``Reads``."""
        return first_damaged(data, begins, sizes, sums)

    def filling(self, coarse: CoarseLists, codebooks: Float32, axes: Float32 | None) -> Filling:
        """See ``Engine``."""
        return ReferenceFilling(coarse, codebooks, axes)


class ReferenceFilling:
    """``Filling`` with torch and faiss, which use all cores in one call."""

    in_threads = False

    def __init__(self, coarse: CoarseLists, codebooks: Float32, axes: Float32 | None) -> None:
        self.coarse, self.codebooks, self.axes = coarse, codebooks, axes

    def assign(self, keys: Float32) -> Int64:
        """See ``Filling``."""
        return self.coarse.assign(keys)

    def encode(self, keys: Float32, lists: Int64) -> Uint8:
        """See ``Filling``."""
        residuals = keys - self.coarse.centroids[lists]
        return np.asarray(self._product.compute_codes(residuals if self.axes is None else rotate(residuals, self.axes)))

    @cached_property
    def _product(self) -> Any:
        size, _, width = self.codebooks.shape
        product = faiss.ProductQuantizer(size * width, size, 8)
        faiss.copy_array_to_vector(self.codebooks.ravel(), product.centroids)
        return product


class ReferenceTopK:
    """``TopK`` that appends the keys below a query's threshold, and rarely sorts them.

    A row of ``_packed`` holds up to ``_capacity`` survivors of one query, each packed into a uint64::

        | bits of the float32 distance (high) | slot of its value and tag (low) |

    The bits of a non-negative float sort like the float, so that sorting the integers sorts by distance and then by
    slot, which is the order of the offers. Only a full row is sorted: it keeps its k nearest, and the k-th distance
    becomes the query's threshold.
    """

    def __init__(self, thresholds: Float32, k: int, *, values: bool, tags: bool) -> None:
        self.k = k
        self._capacity = k + spare_slots(k)
        self._thresholds = thresholds.copy()
        self._counts = np.zeros(len(thresholds), np.int64)
        shape = len(thresholds), self._capacity
        self._packed = np.full(shape, _EMPTY)
        self._kept = np.empty(shape, np.uint32) if values else None, np.empty(shape, np.int64) if tags else None

    def offer(self, members: Int64, scores: torch.Tensor, offsets: torch.Tensor, numbers: Numbers) -> None:
        """See ``TopK``."""
        self._offer(members, scores.numpy(), offsets.numpy(), numbers)

    def _offer(self, queries: Int64, scores: Float32, offsets: Float32, numbers: Numbers) -> None:
        distances = scores + offsets[:, None]
        below = distances < self._thresholds[queries, None]
        added = np.count_nonzero(below, axis=1)
        full = np.flatnonzero(self._counts[queries] + added > self._capacity)
        if len(full):
            self._compact(queries[full])
            below[full] = distances[full] < self._thresholds[queries[full], None]
            added[full] = np.count_nonzero(below[full], axis=1)
        flat = np.flatnonzero(below)
        if not len(flat):
            return
        # the i-th new survivor of a query gets slot count + i; ``flat`` is ordered by query
        firsts = self._counts[queries] - (np.cumsum(added) - added)
        slots = np.arange(len(flat)) + np.repeat(firsts, added)
        places = slots + np.repeat(queries * self._capacity, added)
        keys = flat - np.repeat(np.arange(len(queries)) * scores.shape[1], added)
        self._packed.reshape(-1)[places] = _pack(np.maximum(distances.reshape(-1)[flat], 0), slots)
        for kept, offered in zip(self._kept, numbers, strict=True):
            if kept is not None and offered is not None:
                kept.reshape(-1)[places] = offered[keys]
        self._counts[queries] += added

    def offer_lists(self, groups: Groups, probes: Probes) -> None:
        """See ``TopK``."""
        offer_tiles(self, ((tile, tile.keys()) for tile in tiles_of(groups, self.k)), probes)

    def counts(self) -> Int64:
        """See ``TopK``."""
        return np.minimum(self._counts, self.k)

    def candidates(self) -> Candidates:
        """See ``TopK``."""
        shape = len(self._counts), self.k
        distances = np.empty(shape, np.float32)
        numbers = [None if kept is None else np.empty(shape, np.int64) for kept in self._kept]
        for begin in range(0, shape[0], _ROWS_AT_ONCE):
            block = slice(begin, begin + _ROWS_AT_ONCE)
            used = max(self.k, int(self._counts[block].max()))
            packed = np.sort(self._packed[block, :used], axis=1)[:, : self.k]
            absent = packed == _EMPTY
            slots = (packed & _SLOT).astype(np.int64)
            slots[absent] = 0
            distances[block] = _distances(packed)
            distances[block][absent] = np.inf
            for kept, selected in zip(self._kept, numbers, strict=True):
                if kept is not None and selected is not None:
                    selected[block] = np.take_along_axis(kept[block], slots, 1)
                    selected[block][absent] = ABSENT
        return Candidates(distances, *numbers)

    def _compact(self, queries: Int64) -> None:
        """Sort the survivors of some queries, keep k, and lower the thresholds to the k-th distance."""
        for begin in range(0, len(queries), _ROWS_AT_ONCE):
            block = queries[begin : begin + _ROWS_AT_ONCE]
            packed = np.sort(self._packed[block], axis=1)[:, : self.k]
            slots = (packed & _SLOT).astype(np.int64)
            self._packed[block, : self.k] = packed & ~_SLOT | np.arange(self.k, dtype=np.uint64)
            self._packed[block, self.k :] = _EMPTY
            for kept in self._kept:
                if kept is not None:
                    kept[block, : self.k] = np.take_along_axis(kept[block], slots, 1)
            self._counts[block] = self.k
            self._thresholds[block] = np.minimum(self._thresholds[block], _distances(packed[:, -1]))


def _pack(distances: Float32, slots: Int64) -> Uint64:
    packed: Uint64 = distances.view(np.uint32).astype(np.uint64)
    packed <<= _SHIFT
    packed |= slots.view(np.uint64)
    return packed


def _distances(packed: Uint64) -> Float32:
    return (packed >> _SHIFT).astype(np.uint32).view(np.float32)
