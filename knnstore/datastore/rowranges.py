"""Sets of rows as sorted ranges: what is hidden from a search costs memory by documents, not by rows."""

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
        """The rows of some documents, given by their ascending indices; neighbours make one range."""
        begins, ends = first_row[documents], first_row[documents] + tokens[documents]
        some = begins < ends
        begins, ends = begins[some], ends[some]
        fresh = np.ones(len(begins), np.bool_)
        fresh[1:] = begins[1:] != ends[:-1]
        last = np.ones(len(begins), np.bool_)
        last[:-1] = fresh[1:]
        return cls(begins[fresh], ends[last])

    @property
    def rows(self) -> int:
        """How many rows there are in all ranges together."""
        return int((self.ends - self.begins).sum())

    def contains(self, rows: Int64) -> Bool:
        """Whether each row lies in a range: bool, in the shape of ``rows``."""
        if not len(self.begins):
            return np.zeros(rows.shape, np.bool_)
        place = np.searchsorted(self.begins, rows, side="right") - 1
        found: Bool = (place >= 0) & (rows < self.ends[place])
        return found

    def outside(self, begin: int, end: int) -> Int64 | None:
        """The rows of ``[begin, end)`` that lie in no range, int64 ascending; None if all do not."""
        first = int(np.searchsorted(self.ends, begin, side="right"))
        if first == len(self.begins) or self.begins[first] >= end:
            return None
        rows = np.arange(begin, end)
        return rows[~self.contains(rows)]
