"""Keys and values in list order: what ``repair`` copies from, and all there is of keys whose other copy was dropped.

The rows of a segment's lists are those of the segment in another order, ``rows`` says in which. So what lies at some
rows of the segment is found by one pass over the row numbers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.arrays import open_array, read_rows
from knnstore.datastore.mapped import MappedArray
from knnstore.datastore.segment import KeyChunk, Segment, require_form
from knnstore.errors import CorruptStoreError
from knnstore.wording import command


class ListOrder:
    """Keys in the order of the lists in a folder, which hold the only copy; see ``segment.KeyOrder``."""

    def __init__(self, lists: Path) -> None:
        self.lists = lists

    def read(self, segment: Segment, begin: int, end: int) -> np.ndarray[Any, Any]:
        """See ``KeyOrder``."""
        require_form(self.lists / "keys", segment.form("keys"))
        return gather_rows(self.lists, "keys", begin, end)

    def find(self, segment: Segment, rows: Int64) -> Iterator[tuple[Int64, np.ndarray[Any, Any]]]:
        """See ``KeyOrder``."""
        return find_rows(self.lists, "keys", rows)

    def chunk(self, segment: Segment, begin: int, end: int) -> KeyChunk:
        """See ``KeyOrder``."""
        require_form(self.lists / "keys", segment.form("keys"))
        keys, values, rows = (read_rows(self.lists / name, begin, end) for name in ("keys", "values", "rows"))
        return KeyChunk(keys, segment.require_tokens("values", values), rows.astype(np.int64))


def find_rows(lists: Path, name: str, rows: Int64) -> Iterator[tuple[Int64, np.ndarray[Any, Any]]]:
    """Items of the lists' array ``name`` at some rows, int64 (n,) ascending, in list order: places in ``rows``, items.

    Every row comes once. Raises CorruptStoreError if a chunk on the way is damaged, or a row is missing at the end.
    """
    numbers, data, found = lists / "rows", MappedArray(lists / name), 0
    form = open_array(numbers)
    for begin in range(0, form.shape[0] if len(rows) else 0, form.chunk_rows):
        here = read_rows(numbers, begin, min(begin + form.chunk_rows, form.shape[0])).astype(np.int64)
        near = np.flatnonzero((here >= rows[0]) & (here <= rows[-1]))
        places = np.searchsorted(rows, here[near])
        wanted = rows[places] == here[near]
        if wanted.any():
            found += int(wanted.sum())
            yield places[wanted], data.take(begin + near[wanted])
    if found != len(rows):
        raise CorruptStoreError(f"{lists} holds {found} of {len(rows)} rows that are wanted: see {command('verify')}")


def gather_rows(lists: Path, name: str, begin: int, end: int) -> np.ndarray[Any, Any]:
    """Rows ``[begin, end)`` of the segment out of the lists' array ``name``. Raises what ``find_rows`` does."""
    form = open_array(lists / name)
    block = np.empty((end - begin, *form.shape[1:]), form.dtype)
    for places, items in find_rows(lists, name, np.arange(begin, end)):
        block[places] = items
    return block
