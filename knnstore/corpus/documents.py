"""Files -> documents, each a stream of pieces of text, in bounded memory."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from knnstore.corpus.html import MOST_BYTES, text_of
from knnstore.corpus.listing import Source
from knnstore.corpus.opening import blocks
from knnstore.corpus.options import ReadCounts, ReadOptions
from knnstore.corpus.pairs import unparsed_pairs
from knnstore.corpus.rows import Record, parse_line, parse_row, read_lines, read_rows
from knnstore.corpus.text import UnusableTextError, cut_pieces, decode_blocks
from knnstore.corpus.unpacking import open_utf8
from knnstore.corpus.values import read_values
from knnstore.errors import CorpusError


@dataclass(frozen=True, slots=True)
class Document:
    """A text that isn't empty, and its origin.

    ``path``: of its file. ``record``: number from 0 of its line or row, None if the file is the document. ``id``: value
    of the field or column ``id``. ``pieces``: the text, in one piece unless it is longer than
    ``ReadOptions.piece_chars``; they are read on demand, so consume them before the next document. ``source``: in a
    pair of texts, the text that was translated.
    """

    path: str
    record: int | None
    id: str | None
    pieces: Iterator[str]
    source: str | None = None

    @property
    def digest(self) -> "hashlib._Hash":
        """Return a SHA-256 to be updated with the text; for a pair it starts with the source and a NUL."""
        return hashlib.sha256(b"" if self.source is None else self.source.encode() + b"\0")


def read_documents(
    source: Source, options: ReadOptions | None = None, counts: ReadCounts | None = None
) -> Iterator[Document]:
    """Yield the documents of a file that have any text, in order, and update ``counts``.

    Raises CorpusError with the file and the line, row or byte of text that can't be read under ``options``, and
    ResourceError if the system fails to read it. Both can be raised in the middle of a document's pieces.
    """
    options = options or ReadOptions()
    counts = ReadCounts() if counts is None else counts
    read = _file if source.kind in ("text", "html") else _records
    candidates = read(source, options, counts)
    for document in candidates:
        first = next(document.pieces, None)
        if first is None:
            counts.empty += 1
        else:
            counts.documents += 1
            yield replace(document, pieces=chain([first], document.pieces))


def _file(source: Source, options: ReadOptions, counts: ReadCounts) -> Iterator[Document]:
    if options.errors == "skip" and not _is_usable(source):
        counts.skipped += 1
    else:
        yield Document(source.path, None, None, _pieces(source, options, counts))


def _pieces(source: Source, options: ReadOptions, counts: ReadCounts) -> Iterator[str]:
    try:
        yield from cut_pieces(_texts(source, options, counts), options.piece_chars)
    except UnusableTextError as error:
        raise CorpusError(f"{source.path!r}: {error}") from None


def _is_usable(source: Source) -> bool:
    """Return whether a whole text file decodes, by a separate pass before any of it is yielded."""
    try:
        for _ in _texts(source, ReadOptions(), ReadCounts()):
            pass
    except UnusableTextError:
        return False
    return True


def _texts(source: Source, options: ReadOptions, counts: ReadCounts) -> Iterator[str]:
    with open_utf8(source) as stream:
        if source.kind == "html":
            yield text_of(stream.read(MOST_BYTES + 1), options.errors, counts)
        else:
            yield from decode_blocks(blocks(stream, source.path), options.errors, counts)


def _records(source: Source, options: ReadOptions, counts: ReadCounts) -> Iterator[Document]:
    for number, parse in _unparsed(source, options, counts):
        try:
            text, label, beside = parse()
        except UnusableTextError as error:
            if options.errors != "skip":
                place = {"parquet": f"row {number}", "json": f"record {number + 1}"}.get(
                    source.kind, f"line {number + 1}"
                )
                raise CorpusError(f"{source.path!r}, {place}: {error}") from None
            counts.skipped += 1
        else:
            # a pair is never cut, and is empty if either side is
            pieces = (
                iter([text] if text and beside else []) if options.pairs else cut_pieces([text], options.piece_chars)
            )
            yield Document(source.path, number, label, pieces, beside)


def _unparsed(source: Source, options: ReadOptions, counts: ReadCounts) -> Iterator[tuple[int, Callable[[], Record]]]:
    """Yield record numbers with a function that parses the record or raises UnusableTextError."""
    if options.pairs is not None:
        yield from unparsed_pairs(source, options, counts)
    elif source.kind in ("jsonl", "json"):
        read = read_lines if source.kind == "jsonl" else read_values
        for number, line in read(source, options.max_record_bytes):
            yield number, partial(parse_line, line, options, counts)
    else:
        for number, row in read_rows(source, options.text_field):
            yield number, partial(parse_row, row, options, counts)
