"""Measure how much of the text to score the stores contain word for word, which inflates the gain."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from knnstore.arrays import Bool, Int64
from knnstore.datastore.overlaps import find_windows
from knnstore.datastore.removed import Removed
from knnstore.datastore.stores import Stores
from knnstore.overlap import LENGTH, MOST_WINDOWS, Shingles, covered, window_starts
from knnstore.scoring.texts import Texts, TokenIds
from knnstore.suffix_array.build import open_suffixes
from knnstore.suffix_array.overlaps import find_by_suffixes
from knnstore.wording import option

_MOST_SHARE = 0.02  # share of the tokens above which a measurement says little about new text


@dataclass(frozen=True, slots=True)
class DocumentOverlap:
    """A scored document that a store repeats.

    ``shared`` of its ``tokens`` are in runs of 50 or more that a store contains too. ``source``: the stored document
    with the most of them, or with the same text; ``identical``: whether it is the same text, by SHA-256.
    """

    document: str
    tokens: int
    shared: int
    source: str
    identical: bool

    @property
    def share(self) -> float:
        """Return the share of the tokens, from 0 to 1."""
        return self.shared / self.tokens


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap between the text to score and the stores.

    ``tokens``: of the whole text, including the part for tuning; ``shared``: those in runs of 50 or more tokens that a
    store contains too. ``documents``: the scored documents with overlap, in descending order of their share.
    ``source_documents`` and ``source_keys``: numbers of stored documents that they repeat, and of their keys;
    ``excluded``: whether these were left out of the search. ``seconds``: duration of the measurement.
    """

    tokens: int
    shared: int
    documents: tuple[DocumentOverlap, ...]
    source_documents: int
    source_keys: int
    excluded: bool
    seconds: float

    @property
    def share(self) -> float:
        """Return the share of the tokens, from 0 to 1."""
        return self.shared / self.tokens

    @property
    def inflates(self) -> bool:
        """Return whether the store contains so much of the text that the perplexity says little about new text."""
        return not self.excluded and (self.share > _MOST_SHARE or any(each.identical for each in self.documents))

    @property
    def words(self) -> str:
        """Return the overlap and its consequence as text."""
        words = f"{100 * self.share:.1f} % of the tokens are in runs of {LENGTH} or more that the store has"
        if self.excluded:
            count = self.source_documents
            documents = f"{count:,} document{'' if count == 1 else 's'} of {self.source_keys:,} keys"
            return f"{words}: the search leaves out {documents} that repeat{'s' * (count == 1)} the text"
        if self.inflates:
            exclude = option("exclude_overlap", True)
            return f"{words}, so the gain says little about new text; {exclude} leaves those documents out"
        return words

    def to_json(self) -> dict[str, Any]:
        """Return the object that is printed as JSON."""
        return {
            "tokens": self.tokens,
            "shared_tokens": self.shared,
            "share": self.share,
            "least_run": LENGTH,
            "excluded": self.excluded,
            "source_documents": self.source_documents,
            "source_keys": self.source_keys,
            "documents": [
                {
                    "document": each.document,
                    "tokens": each.tokens,
                    "shared_tokens": each.shared,
                    "share": each.share,
                    "source": each.source,
                    "identical": each.identical,
                }
                for each in self.documents
            ],
        }


def measure_overlap(texts: Texts, stores: Stores, *, exclude: bool) -> tuple[Overlap, list[Removed]]:
    """Return the overlap of the texts with the searched keys, and for each store the documents that they repeat.

    Uses a store's exact-match memory if it has one, else one pass over its tokens per MOST_WINDOWS of the text. Needs
    one byte per token of the text, and a few per stored document.
    """
    started = time.perf_counter()
    matches = _Matches(texts, stores)
    for begin in range(0, len(texts.ids), MOST_WINDOWS):
        matches.add_windows(begin, min(begin + MOST_WINDOWS, len(texts.ids)))
    matches.add_identical()
    documents, keys = matches.sources
    overlap = Overlap(
        tokens=len(texts.ids),
        shared=int(matches.shared.sum()),
        documents=matches.documents(),
        source_documents=documents,
        source_keys=keys,
        excluded=exclude,
        seconds=time.perf_counter() - started,
    )
    return overlap, matches.removed()


@dataclass(slots=True, eq=False)
class _Matches:
    """Matches found so far. Stored documents are numbered across all segments of all stores.

    ``most``: for a scored document, the stored document with the most of its windows, and their number.
    ``identical``: for a scored document, the stored document with the same text.
    """

    texts: Texts
    stores: Stores
    shared: Bool = field(init=False)  # (tokens,)
    repeated: Bool = field(init=False)  # (stored documents,)
    begins: Int64 = field(init=False)  # int64 (segments + 1,): the first document of each segment
    most: dict[int, tuple[int, int]] = field(default_factory=dict)
    identical: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = [len(segment.documents) for segment in self.stores.segments]
        self.begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.shared = np.zeros(len(self.texts.ids), np.bool_)
        self.repeated = np.zeros(int(self.begins[-1]), np.bool_)

    def add_windows(self, begin: int, end: int) -> None:
        """Look up the windows of the texts that begin in ``[begin, end)``."""
        texts = self.texts
        starts = window_starts(texts.first, texts.tokens, begin, end) - begin
        if not len(starts):
            return
        ids = texts.ids[begin : end + LENGTH - 1]
        windows = Shingles(ids, starts)
        source = np.full(windows.groups, -1, np.int64)  # the first stored document with each window
        for number, rows, groups in self._places(windows, ids):
            documents = self.stores.segments[number].documents.locate(rows) + self.begins[number]
            self.repeated[documents] = True
            fresh = source[groups] < 0
            source[groups[fresh][::-1]] = documents[fresh][::-1]
        known = source[windows.group]
        hits = known >= 0
        self.shared[begin : begin + len(ids)] |= covered(starts[hits], len(ids))
        self._count(starts[hits] + begin, known[hits])

    def add_identical(self) -> None:
        """Look up whole texts by their SHA-256, because texts of fewer than LENGTH tokens have no window."""
        wanted: dict[bytes, list[int]] = {}
        for scored, digest in enumerate(self.texts.sha256):
            wanted.setdefault(digest, []).append(scored)
        wanted.pop(b"", None)
        hidden = [rows for store in self.stores.each for rows in store.hidden]
        for number, segment in enumerate(self.stores.segments):
            table = segment.documents
            for document, digest in table.find_texts(list(wanted)):
                if table.tokens[document] and not hidden[number].contains(table.first_row[document]):
                    source = document + int(self.begins[number])
                    self.repeated[source] = True
                    for scored in wanted[digest]:
                        self.identical.setdefault(scored, source)

    @property
    def sources(self) -> tuple[int, int]:
        """Return the number of stored documents that the texts repeat, and of their keys."""
        tokens = np.concatenate([segment.documents.tokens for segment in self.stores.segments])
        return int(self.repeated.sum()), int(tokens[self.repeated].sum())

    def documents(self) -> tuple[DocumentOverlap, ...]:
        """Return the scored documents with overlap: identical ones first, then in descending order of their share."""
        texts = self.texts
        ends = np.concatenate([[0], np.cumsum(self.shared, dtype=np.int64)])
        shared = ends[texts.first + texts.tokens] - ends[texts.first]
        every = [
            DocumentOverlap(
                texts.names[number],
                int(texts.tokens[number]),
                int(shared[number]),
                self._name(self.identical[number] if number in self.identical else self.most[number][0]),
                number in self.identical,
            )
            for number in sorted({*self.most, *self.identical})
        ]
        return tuple(sorted(every, key=lambda each: (not each.identical, -each.share)))

    def removed(self) -> list[Removed]:
        """Return for each store the documents that the texts repeat."""
        parts = iter(np.split(self.repeated, self.begins[1:-1]))
        each = [
            {segment.root.name: np.flatnonzero(next(parts)) for segment in store.segments} for store in self.stores.each
        ]
        return [{name: numbers for name, numbers in documents.items() if len(numbers)} for documents in each]

    def _places(self, windows: Shingles, ids: TokenIds) -> Iterator[tuple[int, Int64, Int64]]:
        """Yield where windows occur: number of the segment across all stores, its rows, and groups of the windows."""
        first = 0
        for store in self.stores.each:
            if suffixes := open_suffixes(store):
                for number, rows, groups in find_by_suffixes(suffixes, store, windows, ids):
                    yield first + number, rows, groups
            else:
                for number, (segment, hidden) in enumerate(zip(store.segments, store.hidden, strict=True)):
                    for rows, groups in find_windows(windows, segment, hidden):
                        yield first + number, rows, groups
            first += len(store.segments)

    def _count(self, starts: Int64, sources: Int64) -> None:
        """Count the windows that a scored document shares with each stored document, and record the maximum."""
        scored = self.texts.documents(starts)
        pairs, counts = np.unique(scored * len(self.repeated) + sources, return_counts=True)
        for pair, windows in zip(pairs.tolist(), counts.tolist(), strict=True):
            document, source = divmod(pair, len(self.repeated))
            if document not in self.most or windows > self.most[document][1]:
                self.most[document] = source, windows

    def _name(self, document: int) -> str:
        segment = int(np.searchsorted(self.begins, document, side="right")) - 1
        return str(self.stores.segments[segment].documents[document - int(self.begins[segment])])
