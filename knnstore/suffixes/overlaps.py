"""Where windows of a text stand in a store, by its exact-match memory: the work depends on the text, not on the store.

The memory sorts positions by the DEPTH tokens before them. A window is longer, so every window holds one of the places
of the text whose number is a multiple of STEP with DEPTH of its tokens before it. Those places alone are looked up, and
each occurrence is compared token by token in both directions.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from knnstore.datastore.store import Datastore
from knnstore.overlap import LENGTH, Windows
from knnstore.suffixes.contexts import DEPTH, Int64
from knnstore.suffixes.plan import live_documents
from knnstore.suffixes.search import Suffixes

_STEP = LENGTH - DEPTH  # places in a window that have DEPTH of its tokens before them, and one behind
_PAIRS = 2**15  # of a place in the text and one in the store, compared at a time


def find_by_suffixes(
    suffixes: Suffixes, store: Datastore, windows: Windows, ids: Any
) -> Iterator[tuple[int, Int64, Int64]]:
    """Where windows of the text ``ids`` (tokens,) stand in the store: a segment's number, rows of it, and groups.

    int64 (n,) each. Each place of a window is given once.
    """
    places = np.unique(-(-(windows.starts + DEPTH) // _STEP) * _STEP)
    contexts = ids[places[:, None] - 1 - np.arange(DEPTH)].astype(np.int64)
    begin, end = suffixes.occurrences(contexts)
    documents = _Documents(store)
    total = np.cumsum(end - begin)
    for first in range(0, int(total[-1]) if len(total) else 0, _PAIRS):
        pair = np.arange(first, min(first + _PAIRS, int(total[-1])))
        which = np.searchsorted(total, pair, side="right")
        positions = suffixes.order.take(end[which] - (total[which] - pair)).astype(np.int64)
        starts, found = _windows_at(suffixes, windows.starts, ids, places[which], positions)
        groups = windows.group[np.searchsorted(windows.starts, starts)]
        for segment, rows, mine in documents.rows_of(found):
            yield segment, rows, groups[mine]


def _windows_at(suffixes: Suffixes, starts: Int64, ids: Any, places: Int64, positions: Int64) -> tuple[Int64, Int64]:
    """Windows around places of the text that stand around positions of the stream, which have equal contexts.

    Where the windows begin, in the text and in the stream: int64 (n,) each.
    """
    offsets = np.arange(-LENGTH + 1, _STEP)
    there, here = positions[:, None] + offsets, places[:, None] + offsets
    inside = (there >= 0) & (there < suffixes.stream.shape[0]) & (here >= 0) & (here < len(ids))
    there, here = np.where(inside, there, 0), np.where(inside, here, 0)
    equal = suffixes.stream.take(there.reshape(-1)).reshape(there.shape) == ids[here]
    runs = np.cumsum(np.pad(equal & inside, ((0, 0), (1, 0))), axis=1)
    pair, offset = np.nonzero(runs[:, LENGTH:] - runs[:, :-LENGTH] == LENGTH)
    begins = places[pair] + offset - LENGTH + 1
    at = np.minimum(np.searchsorted(starts, begins), len(starts) - 1)
    within = starts[at] == begins  # one document of the text
    return begins[within], (positions[pair] + offset - LENGTH + 1)[within]


class _Documents:
    """Where the documents of a store begin in the stream, one after the other, each behind a separator."""

    def __init__(self, store: Datastore) -> None:
        live = [live_documents(store, number) for number in range(len(store.segments))]
        tables = [segment.documents for segment in store.segments]
        tokens = np.concatenate([table.tokens[some] for table, some in zip(tables, live, strict=True)])
        self._first_row = np.concatenate([table.first_row[some] for table, some in zip(tables, live, strict=True)])
        self._segment = np.repeat(np.arange(len(live)), [len(some) for some in live])
        self._begin = np.cumsum(tokens + 1) - tokens

    def rows_of(self, positions: Int64) -> Iterator[tuple[int, Int64, Int64]]:
        """Positions of tokens, a segment at a time: its number, rows of it, and which positions they are of."""
        document = np.searchsorted(self._begin, positions, side="right") - 1
        rows = self._first_row[document] + positions - self._begin[document]
        for segment in np.unique(self._segment[document]).tolist():
            mine = np.flatnonzero(self._segment[document] == segment)
            yield segment, rows[mine], mine
