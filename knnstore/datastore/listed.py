"""Keys and values in list order: the source of ``repair``, and the only copy of keys whose other copy was dropped.

The lists of a segment hold its rows in another order, which their array ``rows`` records. Items at given rows of the
segment are therefore found by one pass over the row numbers.
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
    """The keys in the order of the lists in a folder, which hold the only copy; see ``segment.KeyOrder``."""

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
    """Yield the items of the lists' array ``name`` at ``rows``, int64 (n,) ascending: positions in ``rows``, and items.

    Items come in list order, each row once. Raises CorruptStoreError if a chunk is damaged or, at the end, if a row is
    missing.
    """
    numbers, data, count = lists / "rows", MappedArray(lists / name), 0
    form = open_array(numbers)
    for begin in range(0, form.shape[0] if len(rows) else 0, form.chunk_rows):
        segment_rows = read_rows(numbers, begin, min(begin + form.chunk_rows, form.shape[0])).astype(np.int64)
        candidates = np.flatnonzero((segment_rows >= rows[0]) & (segment_rows <= rows[-1]))
        places = np.searchsorted(rows, segment_rows[candidates])
        wanted = rows[places] == segment_rows[candidates]
        if wanted.any():
            count += int(wanted.sum())
            yield places[wanted], data.take(begin + candidates[wanted])
    if count != len(rows):
        raise CorruptStoreError(f"{lists} holds {count} of the {len(rows)} requested rows: see {command('verify')}")


def gather_rows(lists: Path, name: str, begin: int, end: int) -> np.ndarray[Any, Any]:
    """Return rows ``[begin, end)`` of the segment from the lists' array ``name``. Raises what ``find_rows`` raises."""
    form = open_array(lists / name)
    block = np.empty((end - begin, *form.shape[1:]), form.dtype)
    for places, items in find_rows(lists, name, np.arange(begin, end)):
        block[places] = items
    return block
