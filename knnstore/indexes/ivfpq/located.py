"""Locate lists in mapped memory, request them from the disk, and verify them."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from knnstore.arrays import Bool, Int64
from knnstore.datastore.block_sums import BLOCK_BYTES
from knnstore.datastore.mapped import MappedArray, Pieces, ReadSums
from knnstore.indexes.compute.protocols import Reads
from knnstore.indexes.compute.stored import Column
from knnstore.indexes.ivfpq.lists import SegmentLists

_READS = 16  # concurrent reads of checksums


class Located:
    """The non-empty lists among ``numbers`` of a part, or a share of each from its head, concatenated.

    Request all data with ``ask_for`` before waiting for any, and ``verify`` it before use. Addresses are valid as long
    as this object exists.
    """

    def __init__(
        self, part: SegmentLists, numbers: Int64, arrays: Sequence[MappedArray], engine: Reads, share: float = 1.0
    ) -> None:
        """``arrays``: arrays of the part that are read, the one with the most bytes first."""
        begins = part.offsets[numbers]
        counts = np.ceil((part.offsets[numbers + 1] - begins) * share).astype(np.int64)
        some = counts > 0
        self.part, self.numbers = part, numbers[some]
        self.begins, self.counts = begins[some], counts[some]
        self._engine = engine
        self._pieces = [(array, array.locate(self.begins, self.begins + self.counts)) for array in arrays]
        self._fresh: list[tuple[MappedArray, Pieces]] = []

    def column(self, array: MappedArray) -> Column:
        """Return the lists' rows of one of the arrays."""
        pieces = next(pieces for of, pieces in self._pieces if of is array)
        return Column(pieces, array.dtype, array.shape[1:])

    def spread(self, each: Int64) -> Int64:
        """Repeat a number per list for each key of the list."""
        return np.repeat(each, self.counts)

    def positions(self) -> Int64:
        """Return each key's place in the part's list order: int64 (keys,)."""
        ends = np.cumsum(self.counts)
        return np.arange(int(self.counts.sum())) + self.spread(self.begins - (ends - self.counts))

    def hidden(self) -> Bool | None:
        """Return whether each key is hidden, bool (keys,); None if no key of the part is."""
        return self.part.hidden_at(self.positions()) if self.part.hides else None

    def ask_for(self, *, again: bool = False) -> None:
        """Request the first array from the disk, and the others if they aren't verified yet or if ``again``."""
        self._fresh = [(array, pieces) for array, pieces in self._pieces if not array.is_verified(pieces)]
        if self.part.keys.fetches:
            for array, _ in self._pieces:
                for begin, count in zip(self.begins.tolist(), self.counts.tolist(), strict=True):
                    array.will_need(begin, begin + count)
            return
        first, others = self._pieces[0], self._pieces if again else self._fresh
        for array, pieces in (first, *(pair for pair in others if pair[0] is not first[0])):
            self._read_ahead(array, pieces)
        read_sums([read for array, pieces in self._fresh for read in array.unread_sums(pieces)])

    def _read_ahead(self, array: MappedArray, pieces: Pieces) -> None:
        """Request whole blocks, since each has one checksum."""
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        begins = pieces.starts // BLOCK_BYTES * BLOCK_BYTES
        ends = -(-(pieces.starts + pieces.counts * row_bytes) // BLOCK_BYTES) * BLOCK_BYTES
        self._engine.read_ahead(pieces, begins, np.minimum(ends, array.chunk_bytes))

    def verify(self) -> None:
        """Verify the data that is read for the first time. Raises CorruptStoreError if any of it is damaged."""
        for array, pieces in self._fresh:
            array.verify(pieces, self._engine.first_damaged)


def read_sums(calls: list[ReadSums]) -> None:
    """Make the calls, several at a time."""
    if calls:
        with ThreadPoolExecutor(_READS) as pool:
            list(pool.map(lambda read: read(), calls))
