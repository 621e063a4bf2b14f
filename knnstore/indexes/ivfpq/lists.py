"""A segment's inverted lists, opened for searching: offsets in memory, other arrays mapped."""

from copy import copy

import numpy as np

from knnstore.arrays import Bool, Int64, Uint8
from knnstore.datastore.arrays import read_all
from knnstore.datastore.mapped import MappedArray
from knnstore.datastore.rowranges import RowRanges
from knnstore.datastore.segment import Segment
from knnstore.errors import CorruptStoreError, MismatchError, UnfinishedError
from knnstore.indexes.ivfpq.merge import OFFSETS, array_forms
from knnstore.indexes.ivfpq.plan import IvfPqFolder
from knnstore.indexes.plan import CHECK, SegmentReference, segment_reference
from knnstore.wording import command, option

_BLOCK = 2**20  # rows, a multiple of 8


class SegmentLists:
    """The lists of one segment. ``first_row``: the segment's first row in the store. ``hidden``: rows to skip.

    ``offsets``: int64 (nlist + 1,); ``keys``, ``codes``, ``values`` and ``rows`` are mapped, in list order. ``live``:
    int64 (nlist,), the number of keys in each list that aren't hidden.

    Raises MismatchError if the lists were made from another segment of that name, UnfinishedError if they are
    incomplete, CorruptStoreError if the offsets don't match the segment's rows or an array has another shape or dtype.
    """

    def __init__(
        self, folder: IvfPqFolder, segment: Segment, first_row: int, hidden: RowRanges, *, checked: bool = True
    ) -> None:
        self.first_row = first_row
        self.reference = reference = segment_reference(segment)
        _require(folder, reference, CHECK if checked else OFFSETS)
        self.scales = segment.codec.scales
        path = folder.lists(reference.name, "offsets")
        self.offsets = read_all(path, (folder.plan.nlist + 1,), np.dtype(np.int64))
        ends = (int(self.offsets[0]), int(self.offsets[-1]))
        if ends != (0, reference.rows) or (np.diff(self.offsets) < 0).any():
            raise CorruptStoreError(
                f"{path} doesn't rise from 0 to {reference.rows} rows: index again with {option('overwrite', True)}"
            )
        arrays: dict[str, MappedArray] = {}
        for name, (width, dtype) in array_forms(folder.plan, segment, reference).items():
            array = arrays[name] = MappedArray(folder.lists(reference.name, name))
            if array.shape != (reference.rows, *width) or array.dtype != dtype:
                raise CorruptStoreError(
                    f"{array.path} is {array.dtype} {array.shape}, not {dtype} {(reference.rows, *width)}: "
                    f"index again with {option('overwrite', True)}"
                )
            # a list is read in pieces that end with a chunk; they must have the same rows in all arrays
            if array.chunk_rows != (wanted := arrays["keys"].chunk_rows):
                raise CorruptStoreError(
                    f"{array.path} has {array.chunk_rows} rows per chunk, but the keys have {wanted}: "
                    f"index again with {option('overwrite', True)}"
                )
        self.keys, self.codes = arrays["keys"], arrays["codes"]
        self.values, self.rows = arrays["values"], arrays["rows"]
        self.live: Int64 = np.diff(self.offsets)
        self._hidden = self._hide(hidden) if len(hidden.begins) else None

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the list-ordered rows ``[begin, end)`` of a list."""
        return int(self.offsets[number]), int(self.offsets[number + 1])

    def within(self, first: int, last: int) -> "SegmentLists":
        """Return the same segment with only lists ``[first, last)``; the others appear empty."""
        other = copy(self)
        other.offsets = np.clip(self.offsets, self.offsets[first], self.offsets[last])
        other.live = self.live.copy()
        other.live[:first] = other.live[last:] = 0
        return other

    def store_rows(self, begin: int, end: int) -> Int64:
        """Return the store's row numbers of list-ordered rows ``[begin, end)``: int64."""
        return self.rows.rows(begin, end).astype(np.int64) + self.first_row

    @property
    def hides(self) -> bool:
        """Return whether any row is hidden."""
        return self._hidden is not None

    def kept(self, begin: int, end: int) -> Int64 | None:
        """Return the places within ``[begin, end)``, in list order, of rows that aren't hidden; None if none is."""
        if self._hidden is None:
            return None
        first = begin // 8
        bits = np.unpackbits(self._hidden[first : -(-end // 8)])[begin - 8 * first : end - 8 * first]
        return np.flatnonzero(bits == 0) if bits.any() else None

    def hidden_at(self, places: Int64) -> Bool | None:
        """Return whether the rows at places in list order are hidden, bool (n,); None if no row of the segment is."""
        if self._hidden is None:
            return None
        return np.asarray(self._hidden[places // 8] >> (7 - places % 8).astype(np.uint8) & 1, np.bool_)

    def _hide(self, hidden: RowRanges) -> Uint8:
        """Return one bit per list-ordered row, set if hidden, and subtract those from ``live``. Reads all rows."""
        size = self.rows.shape[0]
        bits = np.empty(-(-size // 8), np.uint8)
        for begin in range(0, size, _BLOCK):
            end = min(begin + _BLOCK, size)
            mask = hidden.contains(self.rows.rows(begin, end).astype(np.int64))
            bits[begin // 8 : -(-end // 8)] = np.packbits(mask)
            lists = np.searchsorted(self.offsets, np.flatnonzero(mask) + begin, side="right") - 1
            self.live -= np.bincount(lists, minlength=len(self.live))
        return bits


def _require(folder: IvfPqFolder, reference: SegmentReference, task: str) -> None:
    try:
        done = folder.list_commits(reference).find(task)
    except MismatchError as error:
        raise MismatchError(
            f"the lists of segment {reference.name} were made from another segment than the existing one "
            f"({reference.fingerprint[:12]}, {reference.rows} rows): run {command('index', overwrite=True)}"
        ) from error
    if done is None:
        raise UnfinishedError(f"{folder.lists(reference.name)} is incomplete: run {command('index')} again")
