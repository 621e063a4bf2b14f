"""From the row of a neighbour to the text around it and the document that it stands in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.datastore.documents import Document
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.datastore.stores import Stores

Int64 = np.ndarray[Any, np.dtype[np.int64]]
Decode = Callable[[Any], str]

CONTEXT_TOKENS = 24
_AFTER_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Passage:
    """A stored token where it stands: the text before it, it, and the text after it; ``row`` is its row."""

    document: Document
    row: int
    before: str
    token: str
    after: str


class Passages:
    """Finds the passages of the rows of a store, or of several; ``decode`` makes text of token ids."""

    def __init__(self, store: Datastore | Stores, decode: Decode) -> None:
        self._segments = store.segments
        self._decode = decode
        self._ends = np.cumsum([segment.rows for segment in store.segments])  # (segments,)
        self._documents = np.cumsum([len(segment.documents) for segment in store.segments])  # (segments,)

    def documents(self, rows: Int64) -> Int64:
        """Number, over all segments, of the document that holds each row: shape of ``rows``."""
        owner = np.searchsorted(self._ends, rows, side="right")
        result = np.empty(rows.shape, np.int64)
        for number, segment in enumerate(self._segments):
            here = owner == number
            first_row = self._ends[number] - segment.rows
            first = self._documents[number] - len(segment.documents)
            result[here] = segment.documents.locate(rows[here] - first_row) + first
        return result

    def document(self, number: int) -> Document:
        """A document by its number over all segments."""
        owner = int(np.searchsorted(self._documents, number, side="right"))
        documents = self._segments[owner].documents
        return documents[number - int(self._documents[owner] - len(documents))]

    def at(self, row: int, before: int = CONTEXT_TOKENS, after: int = _AFTER_TOKENS) -> Passage:
        """The passage of a row, with up to so many tokens of its document on either side."""
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
        """The segment that holds a row of the store, and its row there."""
        if not 0 <= row < self._ends[-1]:
            raise IndexError(f"row {row} of a store with {self._ends[-1]}")
        owner = int(np.searchsorted(self._ends, row, side="right"))
        segment = self._segments[owner]
        return segment, row - int(self._ends[owner] - segment.rows)
