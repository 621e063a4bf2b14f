"""The k nearest so far of many queries: what beats a query's threshold is appended, and rarely sorted."""

from typing import Any

import numpy as np

from knnstore.neighbours import ABSENT, Float32, Int64, Neighbours

_FEWEST_SPARE = 512
_ROWS_AT_ONCE = 512
_EMPTY = np.uint64(2**64 - 1)
_SLOT = np.uint64(2**32 - 1)
_SHIFT = np.uint64(32)


class Nearest:
    """Keeps the k nearest of what is offered to each of n queries and is nearer than its threshold, float32 (n,).

    Ties go to what was offered first.

    A row of ``_packed`` holds up to ``capacity`` survivors, each a uint64: the distance's bits, which sort like the
    distance since it isn't negative, above the slot in which its value and tag lie. Only a full row is sorted; it then
    keeps k and the k-th distance becomes the query's threshold.
    """

    def __init__(self, thresholds: Float32, k: int, *, tags: bool) -> None:
        queries = len(thresholds)
        self.k = k
        self.capacity = k + spare_slots(k)
        self._thresholds = thresholds.copy()
        self._counts = np.zeros(queries, np.int64)
        self._packed = np.full((queries, self.capacity), _EMPTY)
        self._values = np.empty((queries, self.capacity), np.uint32)
        self._tags = np.empty((queries, self.capacity), np.int64) if tags else None

    def offer(
        self, queries: Int64, scores: Float32, offsets: Float32, values: np.ndarray[Any, Any], tags: Int64 | None
    ) -> None:
        """Offer t keys to m queries.

        Args:
            queries: int64 (m,), each once.
            scores: float32 (m, t), t <= capacity − k; the distance is score + offset.
            offsets: float32 (m,).
            values: tokens (t,).
            tags: int64 (t,), kept along with the value, or None.
        """
        below = scores < (self._thresholds[queries] - offsets)[:, None]
        found = np.count_nonzero(below, axis=1)
        full = np.flatnonzero(self._counts[queries] + found > self.capacity)
        if len(full):
            self._compact(queries[full])
            below[full] = scores[full] < (self._thresholds[queries[full]] - offsets[full])[:, None]
            found[full] = np.count_nonzero(below[full], axis=1)
        flat = np.flatnonzero(below)
        if not len(flat):
            return
        # slot of the i-th survivor of a query: its count so far + i; ``flat`` is ordered by query
        firsts = self._counts[queries] - (np.cumsum(found) - found)
        slots = np.arange(len(flat)) + np.repeat(firsts, found)
        places = slots + np.repeat(queries * self.capacity, found)
        keys = flat - np.repeat(np.arange(len(queries)) * scores.shape[1], found)
        distances = scores.reshape(-1)[flat] + np.repeat(offsets, found)
        np.maximum(distances, 0, out=distances)
        self._packed.reshape(-1)[places] = _pack(distances, slots)
        self._values.reshape(-1)[places] = values[keys]
        if self._tags is not None and tags is not None:
            self._tags.reshape(-1)[places] = tags[keys]
        self._counts[queries] += found

    def found(self) -> Int64:
        """How many each query has, at most k: int64 (n,)."""
        return np.minimum(self._counts, self.k)

    def neighbours(self) -> Neighbours:
        """The k nearest of each query, nearest first; ``rows`` are the tags."""
        count = len(self._counts)
        distances = np.empty((count, self.k), np.float32)
        values = np.empty((count, self.k), np.int64)
        tags = None if self._tags is None else np.empty((count, self.k), np.int64)
        for begin in range(0, count, _ROWS_AT_ONCE):
            block = slice(begin, begin + _ROWS_AT_ONCE)
            used = max(self.k, int(self._counts[block].max()))
            packed = np.sort(self._packed[block, :used], axis=1)[:, : self.k]
            absent = packed == _EMPTY
            slots = (packed & _SLOT).astype(np.int64)
            slots[absent] = 0
            distances[block] = _distances(packed)
            values[block] = np.take_along_axis(self._values[block], slots, 1)
            if tags is not None and self._tags is not None:
                tags[block] = np.take_along_axis(self._tags[block], slots, 1)
                tags[block][absent] = ABSENT
            distances[block][absent] = np.inf
            values[block][absent] = ABSENT
        return Neighbours(distances, values, tags)

    def _compact(self, queries: Int64) -> None:
        for begin in range(0, len(queries), _ROWS_AT_ONCE):
            block = queries[begin : begin + _ROWS_AT_ONCE]
            packed = np.sort(self._packed[block], axis=1)[:, : self.k]
            slots = (packed & _SLOT).astype(np.int64)
            self._packed[block, : self.k] = packed & ~_SLOT | np.arange(self.k, dtype=np.uint64)
            self._packed[block, self.k :] = _EMPTY
            self._values[block, : self.k] = np.take_along_axis(self._values[block], slots, 1)
            if self._tags is not None:
                self._tags[block, : self.k] = np.take_along_axis(self._tags[block], slots, 1)
            self._counts[block] = self.k
            self._thresholds[block] = np.minimum(self._thresholds[block], _distances(packed[:, -1]))


def spare_slots(k: int) -> int:
    """Room beyond k in a query's row, and so the most keys that may be offered at once."""
    return max(k, _FEWEST_SPARE)


def query_bytes(k: int, *, tags: bool) -> int:
    """Bytes that ``Nearest`` holds a query."""
    return (k + spare_slots(k)) * (20 if tags else 12) + 16


def concatenate(blocks: list[Neighbours]) -> Neighbours:
    """Neighbours of consecutive blocks of queries."""
    if len(blocks) == 1:
        return blocks[0]
    rows = [block.rows for block in blocks if block.rows is not None]
    return Neighbours(
        np.concatenate([block.distances for block in blocks]),
        np.concatenate([block.values for block in blocks]),
        np.concatenate(rows) if rows else None,
    )


def _pack(distances: Float32, slots: Int64) -> np.ndarray[Any, np.dtype[np.uint64]]:
    packed: np.ndarray[Any, np.dtype[np.uint64]] = distances.view(np.uint32).astype(np.uint64)
    packed <<= _SHIFT
    packed |= slots.view(np.uint64)
    return packed


def _distances(packed: np.ndarray[Any, np.dtype[np.uint64]]) -> Float32:
    return (packed >> _SHIFT).astype(np.uint32).view(np.float32)
