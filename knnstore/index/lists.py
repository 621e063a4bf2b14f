"""A segment's inverted lists, opened for searching: offsets in memory, the rest mapped."""

from typing import Any

import numpy as np

from knnstore.datastore.arrays import read_all
from knnstore.datastore.mapped import MappedArray
from knnstore.datastore.segment import Segment
from knnstore.errors import CorruptStoreError
from knnstore.index.merge import array_forms
from knnstore.index.plan import IndexFolder, SegmentReference


class SegmentLists:
    """The lists of one segment. ``first_row`` is the segment's first row in the store.

    ``offsets``: int64 (nlist + 1,); ``keys``, ``codes``, ``values`` and ``rows`` are mapped, in list order.
    Raises CorruptStoreError if the offsets aren't those of the planned rows, or an array is of another form.
    """

    def __init__(self, folder: IndexFolder, segment: Segment, reference: SegmentReference, first_row: int) -> None:
        self.first_row = first_row
        self.scales = segment.codec.scales
        path = folder.lists(reference.name, "offsets")
        self.offsets = read_all(path, (folder.plan.nlist + 1,), np.dtype(np.int64))
        ends = (int(self.offsets[0]), int(self.offsets[-1]))
        if ends != (0, reference.rows) or (np.diff(self.offsets) < 0).any():
            raise CorruptStoreError(
                f"{path} doesn't rise from 0 to {reference.rows} rows: index again with --overwrite"
            )
        arrays: dict[str, MappedArray] = {}
        for name, (width, dtype) in array_forms(folder.plan, segment).items():
            array = arrays[name] = MappedArray(folder.lists(reference.name, name))
            if array.shape != (reference.rows, *width) or array.dtype != dtype:
                raise CorruptStoreError(
                    f"{array.path} is {array.dtype} {array.shape}, not {dtype} {(reference.rows, *width)}: "
                    f"index again with --overwrite"
                )
        self.keys, self.codes = arrays["keys"], arrays["codes"]
        self.values, self.rows = arrays["values"], arrays["rows"]

    def bounds(self, number: int) -> tuple[int, int]:
        """List-ordered rows ``[begin, end)`` of a list."""
        return int(self.offsets[number]), int(self.offsets[number + 1])

    def store_rows(self, begin: int, end: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Row numbers in the store of list-ordered rows ``[begin, end)``: int64."""
        return self.rows.rows(begin, end).astype(np.int64) + self.first_row
