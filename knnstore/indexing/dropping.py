"""``drop_keys``: delete the keys in corpus order once the index stores them in its lists too."""

from dataclasses import replace
from typing import Any

import numpy as np

from knnstore.datastore.edits import Edit
from knnstore.datastore.listed import ListOrder
from knnstore.datastore.segment import Segment
from knnstore.errors import CorruptStoreError
from knnstore.indexes.hashing import shuffle_key
from knnstore.indexes.plan import IndexFolder
from knnstore.indexes.registry import open_index
from knnstore.progress import Reporter
from knnstore.wording import command

_BLOCK = 16384


def drop_keys(edit: Edit, reporter: Reporter) -> int:
    """Publish a state whose indexed keys are stored only in the lists; return the number of keys dropped.

    First reads all lists of each segment, which must hold the same keys, values and row numbers as the other copy.
    A sweep deletes the files once no reader needs them. Raises CorruptStoreError, without any change, if the copies
    differ or one is damaged.
    """
    store, state = edit.store, edit.state
    assert state.index is not None
    folder, both = open_index(store.root, state.index), [s for s in store.segments if s.rows and s.order.lists is None]
    if not both:
        return 0
    rows = sum(segment.rows for segment in both)
    with reporter.bar("compare", rows, "keys") as advance:
        for segment in both:
            require_listed(folder, segment)
            advance(segment.rows)
    dropped = tuple(segment.root.name for segment in store.segments if segment.rows)
    what = f"drop {rows:,} keys in corpus order: the index has them in its lists"
    edit.publish(replace(state, dropped=dropped), "drop-keys", what, keys=rows)
    return rows


def require_listed(folder: IndexFolder[Any], segment: Segment) -> None:
    """Raise CorruptStoreError unless a segment's lists hold the keys, values and rows that it has in corpus order."""
    lists = folder.lists(segment.root.name)
    if _digest(Segment(segment.root)) != _digest(Segment(segment.root, ListOrder(lists))):
        raise CorruptStoreError(
            f"{lists} doesn't hold the keys of {segment.root}: build the index again with "
            f"{command('index', overwrite=True)}"
        )


def _digest(segment: Segment) -> int:
    """Return a 64-bit digest of all (row, value, key) of a segment, independent of their order."""
    total = 0
    for number in range(segment.chunks):
        chunk = segment.chunk(number)
        for start in range(0, len(chunk.rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            keys = np.ascontiguousarray(chunk.keys[block]).view(np.uint8).reshape(len(chunk.rows[block]), -1)
            words = np.pad(keys, ((0, 0), (0, -keys.shape[1] % 8))).view(np.uint64)
            odd = np.asarray(shuffle_key(np.arange(words.shape[1], dtype=np.uint64), 1)) | np.uint64(1)
            content = (words * odd).sum(axis=1, dtype=np.uint64) + chunk.values[block].astype(np.uint64)
            # mixed with the row, so that swapping the keys of two rows changes the sum
            mixed = np.asarray(shuffle_key(content ^ shuffle_key(chunk.rows[block].astype(np.uint64), 2), 3))
            total += int(mixed.sum(dtype=np.uint64))
    return total % 2**64
