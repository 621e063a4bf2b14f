"""Find the text around the row of a neighbour, and its document."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.documents import DocumentName
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.datastore.stores import Stores

Decode = Callable[[Any], str]

CONTEXT_TOKENS = 24
_AFTER_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Passage:
    """A stored token in its context: the text before it, the token, and the text after it; ``row`` is its row."""

    document: DocumentName
    row: int
    before: str
    token: str
    after: str


class Passages:
    """Finds passages by row in one or several stores; ``decode`` converts token ids to text."""

    def __init__(self, store: Datastore | Stores, decode: Decode) -> None:
        self._segments = store.segments
        self._decode = decode
        self._ends = np.cumsum([segment.rows for segment in store.segments])  # (segments,)
        self._documents = np.cumsum([len(segment.documents) for segment in store.segments])  # (segments,)

    def documents(self, rows: Int64) -> Int64:
        """Return the number, over all segments, of the document of each row; the shape is that of ``rows``."""
        owner = np.searchsorted(self._ends, rows, side="right")
        result = np.empty(rows.shape, np.int64)
        for number, segment in enumerate(self._segments):
            inside = owner == number
            first_row = self._ends[number] - segment.rows
            first = self._documents[number] - len(segment.documents)
            result[inside] = segment.documents.locate(rows[inside] - first_row) + first
        return result

    def document(self, number: int) -> DocumentName:
        """Return a document by its number over all segments."""
        owner = int(np.searchsorted(self._documents, number, side="right"))
        documents = self._segments[owner].documents
        return documents[number - int(self._documents[owner] - len(documents))]

    def at(self, row: int, before: int = CONTEXT_TOKENS, after: int = _AFTER_TOKENS) -> Passage:
        """Return the passage of a row, with at most ``before`` and ``after`` tokens of its document on either side."""
        segment, local = self._segment(row)
        number = int(segment.documents.locate(np.array([local]))[0])
        first = int(segment.documents.first_row[number])
        end = first + int(segment.documents.tokens[number])
        begin = max(first, local - before)
        tokens = segment.values(begin, min(end, local + 1 + after)).tolist()
        place = local - begin
        return Passage(
            segment.documents[number],
            row,
            self._decode(tokens[:place]),
            self._decode(tokens[place : place + 1]),
            self._decode(tokens[place + 1 :]),
        )

    def _segment(self, row: int) -> tuple[Segment, int]:
        """Return the segment of a row of the store, and the row in that segment."""
        if not 0 <= row < self._ends[-1]:
            raise IndexError(f"row {row} of a store with {self._ends[-1]}")
        owner = int(np.searchsorted(self._ends, row, side="right"))
        segment = self._segments[owner]
        return segment, row - int(self._ends[owner] - segment.rows)
