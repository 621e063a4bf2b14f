"""Lists and where they lie in memory, for those who read them there."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from knnstore.datastore.block_sums import BLOCK_BYTES
from knnstore.datastore.mapped import MappedArray, Pieces, ReadSums
from knnstore.index.compiled import damaged_block, read_ahead
from knnstore.index.kernel import load_kernel
from knnstore.index.lists import SegmentLists
from knnstore.index.quantiser import Int64
from knnstore.objects.path import ObjectPath

_READS = 16  # of checksums, at the same time


class Located:
    """Lists ``numbers`` of a part, or a share of each from its head: those that aren't empty, laid end to end.

    All that is read of them is asked for before anything waits, and has to be verified before it is used. Addresses
    hold as long as this is there.
    """

    def __init__(self, part: SegmentLists, numbers: Int64, arrays: Sequence[MappedArray], share: float = 1.0) -> None:
        """``arrays``: what is read of the part, the one with the most bytes first."""
        begins = part.offsets[numbers]
        counts = np.ceil((part.offsets[numbers + 1] - begins) * share).astype(np.int64)
        some = counts > 0
        self.part, self.numbers = part, numbers[some]
        self.begins, self.counts = begins[some], counts[some]
        self._pieces = [(array, array.locate(self.begins, self.begins + self.counts)) for array in arrays]
        self._fresh: list[tuple[MappedArray, Pieces]] = []

    def of(self, array: MappedArray) -> Pieces:
        """Where the lists lie in one of the arrays."""
        return next(pieces for of, pieces in self._pieces if of is array)

    def spread(self, each: Int64) -> Int64:
        """A number of each list, for each of its keys."""
        return np.repeat(each, self.counts)

    def hidden(self) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        """Whether each key is hidden, bool (keys,); None if none of the part's is."""
        if not self.part.hides:
            return None
        ends = np.cumsum(self.counts)
        total = int(self.counts.sum())
        return self.part.hidden_at(np.arange(total) + self.spread(self.begins - (ends - self.counts)))

    def ask_for(self, *, again: bool = False) -> None:
        """Have the disk read the first array, and the rest where it is met for the first time or ``again``."""
        self._fresh = [(array, pieces) for array, pieces in self._pieces if not array.is_verified(pieces)]
        if load_kernel() is None or isinstance(self.part.keys.path, ObjectPath):
            for array, _ in self._pieces:
                for begin, count in zip(self.begins.tolist(), self.counts.tolist(), strict=True):
                    array.will_need(begin, begin + count)
            return
        first, others = self._pieces[0], self._pieces if again else self._fresh
        for array, pieces in (first, *(one for one in others if one[0] is not first[0])):
            _read_ahead(array, pieces)
        read_sums([read for array, pieces in self._fresh for read in array.unread_sums(pieces)])

    def verify(self) -> None:
        """Verify what was met for the first time. Raises CorruptStoreError if some of it is damaged."""
        for array, pieces in self._fresh:
            array.verify(pieces, damaged_block)


def read_sums(calls: list[ReadSums]) -> None:
    """Make the calls, several at the same time."""
    if calls:
        with ThreadPoolExecutor(_READS) as pool:
            list(pool.map(lambda read: read(), calls))


def _read_ahead(array: MappedArray, pieces: Pieces) -> None:
    """Whole blocks, which are verified as such."""
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    begins = pieces.starts // BLOCK_BYTES * BLOCK_BYTES
    ends = -(-(pieces.starts + pieces.counts * row_bytes) // BLOCK_BYTES) * BLOCK_BYTES
    ends = np.minimum(ends, array.chunk_bytes)
    read_ahead(pieces.addresses - (pieces.starts - begins), ends - begins)
