"""The text to score: held-out documents of the store, or files."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.corpus.documents import read_documents
from knnstore.corpus.sources import find_sources
from knnstore.datastore.stores import Stores
from knnstore.errors import CorpusError, UsageError
from knnstore.lm.loading import LoadedModel
from knnstore.score.options import ScoreOptions

Int64 = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Tokenised documents, one after the other.

    ``names``: where each is from. ``ids``: uint32 (all tokens,). ``first``, ``tokens``, ``bytes``: int64
    (documents,), where each begins in ``ids``, and its length. ``digests``: SHA-256 of each document's ids, by which
    it is known again; both halves of one that is cut have the whole's.
    """

    names: tuple[str, ...]
    ids: Any
    first: Int64
    tokens: Int64
    bytes: Int64
    digests: tuple[str, ...] = ()

    def read(self, document: int, begin: int, end: int) -> Any:
        """Token ids ``[begin, end)`` of a document."""
        return self.ids[self.first[document] + begin : self.first[document] + end]

    def select(self, documents: Int64) -> "Texts":
        """Some of the documents."""
        parts = [self.read(int(document), 0, int(self.tokens[document])) for document in documents]
        return _texts(
            [self.names[int(document)] for document in documents],
            parts,
            self.bytes[documents].tolist(),
            [self.digests[int(document)] for document in documents] if self.digests else None,
        )

    def without(self, digests: frozenset[str]) -> "Texts":
        """All but the documents with these digests."""
        return self.select(np.array([i for i, digest in enumerate(self.digests) if digest not in digests], np.int64))


def gather_texts(options: ScoreOptions, stores: Stores, model: LoadedModel) -> tuple[str, Texts]:
    """What is scored, in words, and its tokens. Raises UsageError if there is nothing to score."""
    if options.text:
        return f"--text {' '.join(options.text)}", texts_of_files(options, model)
    names, parts, sizes = [], [], []
    for segment, documents in stores.heldout():
        for document in documents:
            names.append(str(segment.documents[int(document)]))
            parts.append(segment.heldout(int(document)).astype(np.uint32))
            sizes.append(int(segment.documents.heldout_bytes[document]))
    if not parts:
        raise UsageError(f"{stores.name} holds no documents out: say what to score with --text PATH")
    return "held-out documents", _texts(names, parts, sizes)


def texts_of(documents: Iterable[tuple[str, str]], model: LoadedModel) -> Texts:
    """Named texts that are in memory. Raises UsageError if they hold nothing."""
    names, texts = zip(*documents, strict=True)
    parts = [model.tokenise(text).astype(np.uint32) for text in texts]
    if not sum(map(len, parts)):
        raise UsageError("the text is empty: there is nothing to score")
    return _texts(list(names), parts, [len(text.encode()) for text in texts])


def texts_of_files(options: ScoreOptions, model: LoadedModel) -> Texts:
    """The documents in the files that the options name. Raises CorpusError if they hold no text."""
    names, parts, sizes = [], [], []
    for source in find_sources(options.text).sources:
        for document in read_documents(source, options.reading):
            ids, size = [], 0
            for piece in document.pieces:
                ids.append(model.tokenise(piece).astype(np.uint32))
                size += len(piece.encode())
            if sum(map(len, ids)):
                label = document.id if document.id is not None else document.record
                names.append(document.path if label is None else f"{document.path}#{label}")
                parts.append(np.concatenate(ids))
                sizes.append(size)
    if not parts:
        raise CorpusError(f"--text {' '.join(options.text)} holds no text: every document is empty")
    return _texts(names, parts, sizes)


def _texts(names: list[str], parts: list[Any], sizes: list[int], digests: list[str] | None = None) -> Texts:
    if digests is None:
        digests = [hashlib.sha256(part.astype("<u4").tobytes()).hexdigest() for part in parts]
    tokens = np.array([len(part) for part in parts], np.int64)
    ids = np.concatenate(parts) if parts else np.empty(0, np.uint32)
    return Texts(tuple(names), ids, np.cumsum(tokens) - tokens, tokens, np.array(sizes, np.int64), tuple(digests))


def split_for_tuning(texts: Texts, most_tokens: int) -> tuple[Texts, Texts]:
    """Every other document to tune on, up to ``most_tokens``, and all the rest to report on.

    A single document is cut in two: its first half to tune on.
    """
    count = len(texts.tokens)
    if count == 1:
        half = int(texts.tokens[0]) // 2
        if half == 0:
            raise UsageError("one token can't be tuned and reported on: give --k, --lambda and --temperature")
        share = half / int(texts.tokens[0])
        first_bytes = round(int(texts.bytes[0]) * share)
        parts = [texts.ids[:half], texts.ids[half:]]
        name, whole = texts.names[0], list(texts.digests)
        return (
            _texts([f"{name} (first half)"], parts[:1], [first_bytes], whole),
            _texts([f"{name} (second half)"], parts[1:], [int(texts.bytes[0]) - first_bytes], whole),
        )
    every_other = np.arange(0, count, 2)
    within = np.cumsum(texts.tokens[every_other]) <= most_tokens
    within[0] = True
    tuning = every_other[within]
    return texts.select(tuning), texts.select(np.setdiff1d(np.arange(count), tuning))
