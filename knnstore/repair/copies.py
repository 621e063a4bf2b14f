"""Rows of a segment out of the index, which holds each key and value once more, in list order."""

from typing import Any

import numpy as np

from knnstore.datastore.mapped import MappedArray
from knnstore.datastore.segment import Segment
from knnstore.errors import CorruptStoreError
from knnstore.index.plan import IndexFolder

_BLOCK_ROWS = 2**20


def copied_rows(folder: IndexFolder, segment: Segment, name: str, begin: int, end: int) -> np.ndarray[Any, Any]:
    """Rows ``[begin, end)`` of the segment's ``keys`` or ``values``, as the index has them.

    One pass over the index's row numbers. Raises CorruptStoreError if a chunk on the way is damaged, or rows are
    missing there.
    """
    numbers = MappedArray(folder.lists(segment.root.name, "rows"))
    data = MappedArray(folder.lists(segment.root.name, name))
    block = np.empty((end - begin, *data.shape[1:]), data.dtype)
    found = np.zeros(end - begin, bool)
    for first in range(0, numbers.shape[0], _BLOCK_ROWS):
        rows = numbers.rows(first, min(first + _BLOCK_ROWS, numbers.shape[0])).astype(np.int64)
        here = np.flatnonzero((rows >= begin) & (rows < end))
        if len(here):
            block[rows[here] - begin] = data.take(first + here)
            found[rows[here] - begin] = True
    if not found.all():
        raise CorruptStoreError(f"{folder.root} doesn't hold rows {begin} to {end} of segment {segment.root.name}")
    return block
