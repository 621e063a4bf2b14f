"""Sets of rows as sorted ranges, so that hiding rows from a search takes memory per document rather than per row."""

from dataclasses import dataclass

import numpy as np

from knnstore.arrays import Bool, Int64


@dataclass(frozen=True, slots=True, eq=False)
class RowRanges:
    """Disjoint ranges ``[begins[i], ends[i])`` of rows, ascending; int64 (n,) each."""

    begins: Int64
    ends: Int64

    @classmethod
    def of_documents(cls, first_row: Int64, tokens: Int64, documents: Int64) -> "RowRanges":
        """Return the rows of documents, given by ascending index; adjacent documents form one range."""
        begins, ends = first_row[documents], first_row[documents] + tokens[documents]
        nonempty = begins < ends
        begins, ends = begins[nonempty], ends[nonempty]
        # a range starts where no other ends, and its last document is the one before the next start
        fresh = np.ones(len(begins), np.bool_)
        fresh[1:] = begins[1:] != ends[:-1]
        last = np.ones(len(begins), np.bool_)
        last[:-1] = fresh[1:]
        return cls(begins[fresh], ends[last])

    @property
    def rows(self) -> int:
        """Return the total number of rows in all ranges."""
        return int((self.ends - self.begins).sum())

    def contains(self, rows: Int64) -> Bool:
        """Return whether each row is in a range: bool, in the shape of ``rows``."""
        if not len(self.begins):
            return np.zeros(rows.shape, np.bool_)
        place = np.searchsorted(self.begins, rows, side="right") - 1
        inside: Bool = (place >= 0) & (rows < self.ends[place])
        return inside

    def outside(self, begin: int, end: int) -> Int64 | None:
        """Return the rows of ``[begin, end)`` that are in no range, int64 ascending; None if that is all of them."""
        first = int(np.searchsorted(self.ends, begin, side="right"))
        if first == len(self.begins) or self.begins[first] >= end:
            return None
        rows = np.arange(begin, end)
        return rows[~self.contains(rows)]
