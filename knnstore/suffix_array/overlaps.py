"""Find windows of a text in a store with its exact-match memory; the work depends on the text, not on the store.

The memory sorts positions by the DEPTH tokens before them. A window is longer than that, so every window contains a
position of the text that is a multiple of STEP and has DEPTH tokens of the window before it. Only those positions are
looked up, and each occurrence is compared token by token in both directions.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.store import Datastore
from knnstore.overlap import LENGTH, Shingles
from knnstore.suffix_array.contexts import DEPTH
from knnstore.suffix_array.plan import live_documents
from knnstore.suffix_array.search import Suffixes

_STEP = LENGTH - DEPTH  # positions in a window with DEPTH of its tokens before them and one after
_PAIRS = 2**15  # pairs of a position in the text and one in the store, compared at a time


def find_by_suffixes(
    suffixes: Suffixes, store: Datastore, windows: Shingles, ids: Any
) -> Iterator[tuple[int, Int64, Int64]]:
    """Yield where windows of the text ``ids`` (tokens,) occur in the store: number of a segment, its rows, and groups.

    Rows and groups are int64 (n,). Each occurrence of a window is yielded once.
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
        starts, occurrences = _windows_at(suffixes, windows.starts, ids, places[which], positions)
        groups = windows.group[np.searchsorted(windows.starts, starts)]
        for segment, rows, chosen in documents.rows_of(occurrences):
            yield segment, rows, groups[chosen]


def _windows_at(suffixes: Suffixes, starts: Int64, ids: Any, places: Int64, positions: Int64) -> tuple[Int64, Int64]:
    """Return windows of the text around ``places`` that also occur around ``positions``, which have equal contexts.

    The result is where the windows begin in the text and in the stream, int64 (n,) each.
    """
    offsets = np.arange(-LENGTH + 1, _STEP)
    store, text = positions[:, None] + offsets, places[:, None] + offsets
    inside = (store >= 0) & (store < suffixes.stream.shape[0]) & (text >= 0) & (text < len(ids))
    store, text = np.where(inside, store, 0), np.where(inside, text, 0)
    equal = suffixes.stream.take(store.reshape(-1)).reshape(store.shape) == ids[text]
    runs = np.cumsum(np.pad(equal & inside, ((0, 0), (1, 0))), axis=1)
    pair, offset = np.nonzero(runs[:, LENGTH:] - runs[:, :-LENGTH] == LENGTH)
    begins = places[pair] + offset - LENGTH + 1
    at = np.minimum(np.searchsorted(starts, begins), len(starts) - 1)
    within = starts[at] == begins  # the window lies within one document of the text
    return begins[within], (positions[pair] + offset - LENGTH + 1)[within]


class _Documents:
    """The start of each document of a store in the stream."""

    def __init__(self, store: Datastore) -> None:
        live = [live_documents(store, number) for number in range(len(store.segments))]
        tables = [segment.documents for segment in store.segments]
        tokens = np.concatenate([table.tokens[some] for table, some in zip(tables, live, strict=True)])
        self._first_row = np.concatenate([table.first_row[some] for table, some in zip(tables, live, strict=True)])
        self._segment = np.repeat(np.arange(len(live)), [len(some) for some in live])
        self._begin = np.cumsum(tokens + 1) - tokens

    def rows_of(self, positions: Int64) -> Iterator[tuple[int, Int64, Int64]]:
        """Yield for each segment its number, the rows of ``positions`` in it, and the indices of those positions."""
        document = np.searchsorted(self._begin, positions, side="right") - 1
        rows = self._first_row[document] + positions - self._begin[document]
        for segment in np.unique(self._segment[document]).tolist():
            chosen = np.flatnonzero(self._segment[document] == segment)
            yield segment, rows[chosen], chosen
