"""What ``nearest.py`` does, by the compiled kernel; and many lists of int8 keys, product and comparison in one call.

The same numbers come out for the same scores. Int8 keys are multiplied in integers, the query rounded to 16
bits relative to its largest residual, so its distances differ from the reference's in about the fifth digit.
"""

import mmap
from typing import Any

import numpy as np

from knnstore.datastore.block_sums import first_damaged
from knnstore.datastore.mapped import ASKED_AT_ONCE
from knnstore.index.kernel import Survivors, load_kernel
from knnstore.index.nearest import spare_slots
from knnstore.neighbours import ABSENT, Float32, Int64, Neighbours

_SLACK = 32  # the kernel writes whole registers
Uint32 = np.ndarray[Any, np.dtype[np.uint32]]
PIECE = np.dtype(
    [
        (name, np.int64)
        for name in (
            "units",
            "values",
            "rows",
            "hidden",
            "scales",
            "count",
            "list",
            "first_row",
            "value_bytes",
            "row_bytes",
        )
    ]
)
"""``Piece`` of kernel.c: ``count`` keys of a list in memory; the first five are addresses, 0 for none."""


class CompiledNearest:
    """``Nearest``: keeps the k nearest of what is offered to each of n queries. Tags are kept as uint32.

    Without ``values`` distances alone are kept.
    """

    def __init__(self, kernel: Any, thresholds: Float32, k: int, *, tags: bool, values: bool = True) -> None:
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

    @property
    def values(self) -> bool:
        """Whether values are kept."""
        return self._values is not None

    @property
    def tags(self) -> bool:
        """Whether tags are kept."""
        return self._tags is not None

    def offer_lists(
        self,
        pieces: np.ndarray[Any, Any],
        centroids: Float32,
        queries: Float32,
        members: Int64,
        bounds: Int64,
    ) -> None:
        """Offer pieces of lists of int8 keys, (p,) of PIECE, to those of the queries that probe the lists.

        Args:
            pieces: what they point to has to stay where it is until this returns.
            centroids: contiguous float32 (nlist, d), near to a list's keys and queries: keep the products small.
            queries: contiguous float32 (n, d).
            members, bounds: int64; list i is probed by members[bounds[i] : bounds[i + 1]].
        """
        pieces, members, bounds = map(np.ascontiguousarray, (pieces, members, bounds))
        dimension = queries.shape[1]
        if not len(self._scratch):
            self._scratch = np.empty(self._kernel.scan_bytes(dimension) + 64, np.uint8)
        self._kernel.scan_lists(
            self._state,
            _address(pieces),
            len(pieces),
            dimension,
            _address(centroids),
            _address(queries),
            _address(members),
            _address(bounds),
            -(-self._scratch.ctypes.data // 64) * 64,
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
        """Offer int8 keys, (t, d), to some of the queries, contiguous float32 (n, d).

        A distance is that of the query to scales · units; ``centroid`` (d,) is near to both.
        """
        held = [None if one is None else np.ascontiguousarray(one) for one in (units, values, tags)]
        piece = np.zeros(1, PIECE)
        piece["units"], piece["values"], piece["rows"] = (_address(one) or 0 for one in held)
        piece["scales"], piece["count"] = _address(scales), len(units)
        piece["value_bytes"], piece["row_bytes"] = values.itemsize, 0 if tags is None else tags.itemsize
        self.offer_lists(piece, centroid, queries, members, np.array([0, len(members)]))

    def found(self) -> Int64:
        """How many each query has, at most k: int64 (n,)."""
        return np.minimum(self._counts, self.k)

    def neighbours(self) -> Neighbours:
        """The k nearest of each query, nearest first; ``rows`` are the tags."""
        shape = (len(self._counts), self.k)
        distances = np.empty(shape, np.float32)
        values, tags = (None if kept is None else np.empty(shape, np.int64) for kept in (self._values, self._tags))
        outputs = map(_address, (distances, values, tags))
        self._kernel.select_nearest(self._state, len(self._counts), *outputs)
        return Neighbours(distances, np.broadcast_to(np.int64(ABSENT), shape) if values is None else values, tags)


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


def smallest(distances: Float32, k: int) -> Int64:
    """Where the k smallest finite ones of some distances, float32 (n,), lie, nearest first; ties go to the first."""
    places, work = np.empty(min(k, len(distances)), np.int64), np.empty(2 * len(distances), np.uint64)
    found = load_kernel().smallest(_address(distances), len(distances), len(places), _address(work), _address(places))
    return places[:found]


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
    load_kernel().will_need(_address(addresses), _address(sizes), len(addresses), mmap.PAGESIZE, ASKED_AT_ONCE)


def _words(numbers: np.ndarray[Any, Any]) -> Uint32:
    """As the kernel reads them, with room for a whole register beyond the last."""
    words = np.empty(len(numbers) + _SLACK, np.uint32)
    words[: len(numbers)] = numbers
    return words


def _address(array: np.ndarray[Any, Any] | None) -> int | None:
    return None if array is None else array.__array_interface__["data"][0]  # quicker than through ctypes
