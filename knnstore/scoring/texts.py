"""Gather the text to score: held-out documents of the store, or files."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnstore.arrays import Int64, Uint32
from knnstore.corpus.documents import read_documents
from knnstore.datastore.stores import Stores
from knnstore.errors import CorpusError, UsageError, located
from knnstore.lm.loading import KINDS, LoadedModel
from knnstore.lm.sources import SourceReader
from knnstore.scoring.options import ScoreOptions
from knnstore.wording import option

TokenIds = Uint32
Digest = bytes
"""SHA-256 of a whole text as a store records it; empty for a part of a text."""


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Tokenised documents, concatenated.

    ``names``: origin of each document. ``ids``: uint32 (all tokens,). ``first``, ``tokens``, ``bytes``: int64
    (documents,), where each begins in ``ids``, and its lengths. ``digests``: SHA-256 of each document's ids, which
    identifies it; both halves of a divided document have that of the whole. ``sources``: for pairs of texts, the token
    ids of each document's source. ``sha256``: of each document's text, if the texts are unchanged from a store or
    files.
    """

    names: tuple[str, ...]
    ids: TokenIds
    first: Int64
    tokens: Int64
    bytes: Int64
    digests: tuple[str, ...] = ()
    sources: tuple[NDArray[Any], ...] = ()
    sha256: tuple[Digest, ...] = ()

    @property
    def source(self) -> SourceReader | None:
        """Return a reader of documents' sources; None if the documents aren't pairs."""
        return self.sources.__getitem__ if self.sources else None

    def read(self, document: int, begin: int, end: int) -> TokenIds:
        """Return token ids ``[begin, end)`` of a document."""
        return self.ids[self.first[document] + begin : self.first[document] + end]

    def documents(self, rows: Int64) -> Int64:
        """Return the document of each row of ``ids``: int64, in the shape of ``rows``."""
        return np.searchsorted(self.first + self.tokens, rows, side="right")

    def before(self, row: int, most: int) -> TokenIds:
        """Return up to ``most`` token ids before a row in its document."""
        return self.ids[max(row - most, int(self.first[self.documents(np.array(row))])) : row]

    def select(self, documents: Int64) -> "Texts":
        """Return some of the documents."""
        parts = [self.read(int(document), 0, int(self.tokens[document])) for document in documents]
        return _texts(
            [self.names[int(document)] for document in documents],
            parts,
            self.bytes[documents].tolist(),
            [self.digests[int(document)] for document in documents] if self.digests else None,
            [self.sources[int(document)] for document in documents] if self.sources else [],
        )

    def without(self, digests: frozenset[str]) -> "Texts":
        """Return all documents except those with these digests."""
        return self.select(np.array([i for i, digest in enumerate(self.digests) if digest not in digests], np.int64))


def gather_texts(options: ScoreOptions, stores: Stores, model: LoadedModel) -> tuple[str, Texts]:
    """Return a description of the text to score, and its tokens. Raises UsageError if there is nothing to score."""
    if options.named:
        longest = stores.manifest.key.context if model.task == "seq2seq" else None
        return texts_of_files(options, model, longest, special=stores.special_tokens)
    return "held-out documents", heldout_texts(stores)


def heldout_texts(stores: Stores) -> Texts:
    """Return the held-out documents of the stores. Raises UsageError if there are none."""
    pairs = stores.manifest.key.task == "seq2seq"
    names, parts, sizes, sources, digests = [], [], [], [], []
    for segment, documents in stores.heldout():
        for document in documents:
            names.append(str(segment.documents[int(document)]))
            parts.append(segment.heldout(int(document)).astype(np.uint32))
            sizes.append(int(segment.documents.heldout_bytes[document]))
            digests.append(b"" if segment.documents.tokens[document] else segment.documents.digest(int(document)))
            if pairs:
                sources.append(segment.source(int(document)))
    if not parts:
        files = f"{option('source', 'FILE')} {option('target', 'FILE')}" if pairs else option("text", "PATH")
        raise UsageError(f"{stores.name} has no held-out documents: give a text to score with {files}")
    return replace(_texts(names, parts, sizes, sources=sources), sha256=tuple(digests))


def texts_of(
    documents: Iterable[tuple[str, str]], model: LoadedModel, sources: Sequence[str] = (), *, special: bool
) -> Texts:
    """Return named texts in memory; ``sources``: for an encoder-decoder model, the source of each.

    ``special``: whether the spelling of a special token in them is that token.

    Raises UsageError if the texts are empty, or sources are missing or not allowed.
    """
    names, texts = zip(*documents, strict=True)
    if (model.task == "seq2seq") != bool(sources):
        needs = "give the source of the text" if not sources else "give the text without a source"
        raise UsageError(f"the store was made by {KINDS[model.task]}: {needs}")
    tokenise = model.tokenise_target if sources else model.tokenise
    parts = [tokenise(text, special=special).astype(np.uint32) for text in texts]
    if not any(texts) or not sum(map(len, parts)):
        raise UsageError("the text is empty: there is nothing to score")
    read = [model.tokenise_source(source, special=special) for source in sources]
    return _texts(list(names), parts, [len(text.encode()) for text in texts], sources=read)


def texts_of_files(
    options: ScoreOptions, model: LoadedModel, longest: int | None = None, *, special: bool
) -> tuple[str, Texts]:
    """Return a description of the files that the options name, and their documents.

    ``longest``: for pairs of texts, the maximum tokens of either. ``special``: as for ``texts_of``.
    Raises CorpusError if the files hold no text.
    """
    names, parts, sizes, sources, digests, too_long = [], [], [], [], [], 0
    for file in options.files(model.task):
        for document in read_documents(file, options.reading(model.task)):
            ids, size, digest, tokenise = (
                [],
                0,
                document.digest,
                model.tokenise if longest is None else model.tokenise_target,
            )
            for piece in document.pieces:
                with located(document.path):
                    ids.append(tokenise(piece, special=special).astype(np.uint32))
                data = piece.encode()
                size += len(data)
                digest.update(data)
            if not sum(map(len, ids)):
                continue
            if longest is not None:
                with located(document.path):
                    source = model.tokenise_source(document.source or "", special=special)
                if max(len(source), len(ids[0])) > longest:
                    too_long += 1
                    continue
                sources.append(source)
            label = document.id if document.id is not None else document.record
            names.append(document.path if label is None else f"{document.path}#{label}")
            parts.append(np.concatenate(ids))
            sizes.append(size)
            digests.append(digest.digest())
    given = {"text": options.text, "source": options.source, "target": options.target}
    words = " ".join(option(name, " ".join(paths)) for name, paths in given.items() if paths)
    if not parts:
        raise CorpusError(f"{words} holds no text: every document is empty{' or too long' * bool(too_long)}")
    left_out = f" ({too_long:,} pairs longer than {longest:,} tokens left out)" if too_long else ""
    return f"{words}{left_out}", replace(_texts(names, parts, sizes, sources=sources), sha256=tuple(digests))


def _texts(
    names: list[str],
    parts: list[TokenIds],
    sizes: list[int],
    digests: list[str] | None = None,
    sources: Sequence[NDArray[Any]] = (),
) -> Texts:
    if digests is None:
        # a pair is identified by its source too
        whole = [np.concatenate(pair) for pair in zip(sources, parts, strict=True)] if sources else parts
        digests = [hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest() for ids in whole]
    tokens = np.array([len(part) for part in parts], np.int64)
    ids = np.concatenate(parts) if parts else np.empty(0, np.uint32)
    return Texts(
        tuple(names), ids, np.cumsum(tokens) - tokens, tokens, np.array(sizes, np.int64), tuple(digests), tuple(sources)
    )


def split_for_tuning(texts: Texts, most_tokens: int) -> tuple[Texts, Texts]:
    """Return every other document to tune on, up to ``most_tokens``, and all the rest to report on.

    A single document is cut in two, and its first half is tuned on.
    """
    count = len(texts.tokens)
    remedy = f"give {option('k')}, {option('lambda_')} and {option('temperature')}"
    if count == 1 and texts.sources:
        raise UsageError(f"one pair can't be used for both tuning and the report: {remedy}, or more pairs")
    if count == 1:
        half = int(texts.tokens[0]) // 2
        if half == 0:
            raise UsageError(f"one token can't be used for both tuning and the report: {remedy}")
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
