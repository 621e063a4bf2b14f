"""What ``nearest.py`` does, by the compiled kernel; and whole tiles of int8 keys, product and comparison in one.

The same numbers come out for the same scores. A tile of int8 keys is multiplied in integers, the query rounded to 16
bits relative to its largest residual, so its distances differ from the reference's in about the fifth digit.
"""

import mmap
from typing import Any

import numpy as np

from knnstore.datastore.block_sums import first_damaged
from knnstore.index.kernel import Survivors, load_kernel
from knnstore.index.nearest import spare_slots
from knnstore.neighbours import Float32, Int64, Neighbours

_SLACK = 32  # the kernel writes whole registers
_QUERIES_AT_ONCE = 1024
Uint32 = np.ndarray[Any, np.dtype[np.uint32]]


class CompiledNearest:
    """``Nearest``: keeps the k nearest of what is offered to each of n queries. Tags are kept as uint32."""

    def __init__(self, kernel: Any, thresholds: Float32, k: int, *, tags: bool) -> None:
        self.k = k
        capacity = k + spare_slots(k)
        self._kernel = kernel
        self._thresholds = thresholds.copy()
        shape = (len(thresholds), capacity + _SLACK)
        self._distances = np.empty(shape, np.float32)
        self._values = np.empty(shape, np.uint32)
        self._tags = np.empty(shape, np.uint32) if tags else None
        self._counts = np.zeros(len(thresholds), np.int64)
        self._work = np.empty(2 * capacity, np.uint64)
        self._scratch = np.empty(0, np.uint8)
        self._state = Survivors(
            _address(self._distances),
            _address(self._values),
            _address(self._tags),
            _address(self._counts),
            _address(self._thresholds),
            _address(self._work),
            capacity,
            shape[1],
            k,
        )

    def offer(
        self, queries: Int64, scores: Float32, offsets: Float32, values: np.ndarray[Any, Any], tags: Int64 | None
    ) -> None:
        """Offer t keys to m queries; see ``Nearest.offer``."""
        scores, offsets, queries = map(np.ascontiguousarray, (scores, offsets, queries))
        words = _words(values)
        tag_words = words if tags is None else _words(tags)
        self._kernel.offer_scores(
            self._state,
            _address(scores),
            *scores.shape,
            _address(queries),
            _address(offsets),
            _address(words),
            _address(tag_words),
        )

    def offer_units(
        self,
        queries: Float32,
        members: Int64,
        units: np.ndarray[Any, np.dtype[np.int8]],
        scales: Float32,
        centroid: Float32,
        *,
        values: np.ndarray[Any, Any],
        tags: Int64 | None,
    ) -> None:
        """Offer the int8 keys of a list, (t, d), to some of the queries, contiguous float32 (n, d).

        A distance is that of the query to scales · units; ``centroid`` (d,), near to both, keeps the products small.
        """
        words = _words(values)
        tag_words = words if tags is None else _words(tags)
        units, members, centroid = map(np.ascontiguousarray, (units, members, centroid))
        for begin in range(0, len(members), _QUERIES_AT_ONCE):
            some = members[begin : begin + _QUERIES_AT_ONCE]
            self._kernel.scan_units(
                self._state,
                _address(units),
                *units.shape,
                _address(scales),
                _address(centroid),
                _address(words),
                _address(tag_words),
                _address(queries),
                _address(some),
                len(some),
                self._scratch_for(len(some), *units.shape),
            )

    def found(self) -> Int64:
        """How many each query has, at most k: int64 (n,)."""
        return np.minimum(self._counts, self.k)

    def neighbours(self) -> Neighbours:
        """The k nearest of each query, nearest first; ``rows`` are the tags."""
        shape = (len(self._counts), self.k)
        distances, values = np.empty(shape, np.float32), np.empty(shape, np.int64)
        tags = None if self._tags is None else np.empty(shape, np.int64)
        outputs = map(_address, (distances, values, tags))
        self._kernel.select_nearest(self._state, len(self._counts), *outputs)
        return Neighbours(distances, values, tags)

    def _scratch_for(self, queries: int, keys: int, dimension: int) -> int:
        needed = self._kernel.scan_bytes(queries, keys, dimension) + 64
        if len(self._scratch) < needed:
            self._scratch = np.empty(needed, np.uint8)
        return -(-self._scratch.ctypes.data // 64) * 64


def squared_distances_of_pieces(query: Float32, addresses: Int64, counts: Int64, scales: Float32) -> Float32:
    """Squared distances, float32 (sum of counts,), of one query (d,) to the int8 keys in memory at some addresses."""
    distances = np.empty(int(counts.sum()), np.float32)
    load_kernel().unit_distances_of(
        _address(query),
        _address(addresses),
        _address(counts),
        len(counts),
        len(query),
        _address(scales),
        _address(distances),
    )
    return distances


def items_at(addresses: Int64, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The items in memory at some addresses, (n,)."""
    items = np.empty(len(addresses), dtype)
    load_kernel().take_items(_address(addresses), len(addresses), dtype.itemsize, _address(items))
    return items


def damaged_block(data: np.ndarray[Any, Any], begins: Int64, sizes: Int64, sums: Uint32) -> int | None:
    """``first_damaged`` of ``datastore/block_sums.py``; other threads run meanwhile."""
    kernel = load_kernel()
    if kernel is None or not kernel.checksums():
        return first_damaged(data, begins, sizes, sums)
    begins, sizes, sums = map(np.ascontiguousarray, (begins, sizes, sums))
    found: int = kernel.damaged_block(_address(data), _address(begins), _address(sizes), _address(sums), len(sums))
    return None if found < 0 else found


def read_ahead(addresses: Int64, sizes: Int64) -> None:
    """Ask for mapped memory, ``sizes`` bytes at each of the addresses, to be read from the disk meanwhile."""
    load_kernel().will_need(_address(addresses), _address(sizes), len(addresses), mmap.PAGESIZE)


def _words(numbers: np.ndarray[Any, Any]) -> Uint32:
    """As the kernel reads them, with room for a whole register beyond the last."""
    words = np.empty(len(numbers) + _SLACK, np.uint32)
    words[: len(numbers)] = numbers
    return words


def _address(array: np.ndarray[Any, Any] | None) -> int | None:
    return None if array is None else array.__array_interface__["data"][0]  # quicker than through ctypes
