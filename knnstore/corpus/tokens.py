"""Documents -> tokens: each part of the corpus is written as a sequence of ids and a table of documents."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.corpus.documents import Document, read_documents
from knnstore.corpus.options import ReadCounts, ReadOptions
from knnstore.corpus.parts import TokenPart
from knnstore.errors import ModelError, UsageError, located
from knnstore.files import storage_errors
from knnstore.records import LATER

Tokenise = Callable[[str], Sequence[int] | npt.NDArray[np.integer[Any]]]
"""Converts a piece of text to token ids, without special tokens."""

PART_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("record", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("source_tokens", pa.int64()),
    ]
)
"""The table of documents; ``bytes`` and ``sha256`` are those of the text in UTF-8, after newline translation.

For a pair, ``bytes`` and ``tokens`` are those of the target, ``source_tokens`` those of the source, and ``sha256``
covers both.
"""

SURVEY_SCHEMA = pa.schema([PART_SCHEMA.field(name) for name in ("path", "record", "id", "sha256")])

_ROW_GROUP = 16_384


@dataclass(frozen=True, slots=True)
class PartSummary:
    """The contents of a part: documents with tokens, their tokens and UTF-8 bytes, and what was left out or replaced.

    ``empty``: documents without characters or tokens. ``skipped``: unusable documents. ``replaced``: characters
    replaced by U+FFFD. ``too_long``: pairs with a text longer than the LM accepts. ``special_spellings``: special
    tokens spelled out in the text; None if there are none.
    """

    documents: int
    tokens: int
    bytes: int
    empty: int
    skipped: int
    replaced: int
    too_long: int = 0
    special_spellings: int | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, slots=True)
class PairTokens:
    """For pairs of texts: tokenizer of the sources, file of their tokens, and maximum length of either text."""

    tokenise: Tokenise
    file: Path
    longest: int


def tokenise_part(  # noqa: PLR0917  the two files are the outputs, in the order of the docstring
    part: TokenPart,
    tokenise: Tokenise,
    options: ReadOptions,
    dtype: npt.DTypeLike,
    tokens_file: Path,
    documents_file: Path,
    pairs: PairTokens | None = None,
) -> PartSummary:
    """Write the part's token ids, little-endian ``dtype`` (uint16 or uint32), and its table of documents.

    For ``pairs``, the ids are those of the targets, and the ids of the sources are written as well; pairs that are too
    long are left out. Each piece of a document is tokenised separately. Existing files are replaced, and nothing is
    synced; the same part gives the same bytes. The table is Parquet (``PART_SCHEMA``), with one row per document
    that has tokens.

    Raises the errors of ``read_documents``, ModelError for ids that aren't integers in the range of ``dtype``, and
    ResourceError if a file can't be written.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.dtype(np.uint16), np.dtype(np.uint32)):
        raise UsageError(f"tokens can't be stored as {dtype}: use uint16 or uint32")
    counts = ReadCounts()
    documents = tokens = size = 0
    with (
        storage_errors("write", tokens_file),
        tokens_file.open("wb") as file,
        pairs.file.open("wb") if pairs else nullcontext() as sources,
        pq.ParquetWriter(documents_file, PART_SCHEMA, compression="zstd") as table,
    ):
        stored = dtype.newbyteorder("<")
        write = partial(_write_tokens, tokenise=tokenise, dtype=stored, file=file)
        if pairs is not None and sources is not None:
            write = partial(_write_pair, tokenise=tokenise, pairs=pairs, dtype=stored, files=(file, sources))
        rows = (row for row in map(write, _documents(part, options, counts)) if row["tokens"])
        while group := list(islice(rows, _ROW_GROUP)):
            table.write_table(pa.Table.from_pylist(group, PART_SCHEMA))
            documents += len(group)
            tokens += sum(row["tokens"] for row in group)
            size += sum(row["bytes"] for row in group)
    too_long = 0 if pairs is None else counts.documents - documents
    empty = counts.empty + counts.documents - documents - too_long
    return PartSummary(documents, tokens, size, empty, counts.skipped, counts.replaced, too_long)


def survey_part(part: TokenPart, options: ReadOptions) -> pa.Table:
    """Return ``path``, ``record``, ``id`` and ``sha256`` of the documents of a part, without tokenising them.

    Raises the errors of ``read_documents``.
    """
    rows = []
    for document in _documents(part, options, ReadCounts()):
        digest = document.digest
        for piece in document.pieces:
            digest.update(piece.encode())
        rows.append({"path": document.path, "record": document.record, "id": document.id, "sha256": digest.digest()})
    return pa.Table.from_pylist(rows, SURVEY_SCHEMA)


def _documents(part: TokenPart, options: ReadOptions, counts: ReadCounts) -> Iterator[Document]:
    for number, source in enumerate(part.sources):
        records = part.records[number] if part.records else None
        wanted = None if records is None else set(records)
        for document in read_documents(source, options, counts):
            if wanted is None or document.record in wanted:
                yield document
            else:
                counts.documents -= 1


def _write_tokens(document: Document, *, tokenise: Tokenise, dtype: np.dtype[Any], file: BinaryIO) -> dict[str, Any]:
    """Append the tokens of a document to ``file`` and return its row of the table."""
    digest = document.digest
    size = tokens = 0
    for piece in document.pieces:
        data = piece.encode()
        digest.update(data)
        size += len(data)
        ids = _tokenised(tokenise, piece, dtype, document.path)
        file.write(ids.tobytes())
        tokens += len(ids)
    return {
        "path": document.path,
        "record": document.record,
        "id": document.id,
        "bytes": size,
        "sha256": digest.digest(),
        "tokens": tokens,
        "source_tokens": None,
    }


def _write_pair(
    document: Document,
    *,
    tokenise: Tokenise,
    pairs: PairTokens,
    dtype: np.dtype[Any],
    files: tuple[BinaryIO, BinaryIO],
) -> dict[str, Any]:
    """Append the tokens of a pair to the files of targets and sources and return its row, without tokens if too long.

    Both sides include special tokens, so neither is empty.
    """
    text, digest = "".join(document.pieces), document.digest
    digest.update(text.encode())
    sides = [
        _tokenised(tokenise_side, side, dtype, document.path)
        for tokenise_side, side in ((tokenise, text), (pairs.tokenise, document.source or ""))
    ]
    if max(map(len, sides)) > pairs.longest:
        sides = [side[:0] for side in sides]
    for file, side in zip(files, sides, strict=True):
        file.write(side.tobytes())
    return {
        "path": document.path,
        "record": document.record,
        "id": document.id,
        "bytes": len(text.encode()),
        "sha256": digest.digest(),
        "tokens": len(sides[0]),
        "source_tokens": len(sides[1]),
    }


def _tokenised(tokenise: Tokenise, text: str, dtype: np.dtype[Any], path: str) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return the token ids of a text, shape (tokens,); a ModelError of the tokenizer names the document."""
    with located(path):
        ids = tokenise(text)
    return _checked(ids, dtype, path)


def _checked(
    ids: Sequence[int] | npt.NDArray[np.integer[Any]], dtype: np.dtype[Any], path: str
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return the ids as an array of ``dtype``, shape (tokens,), checking the range because a cast would wrap."""
    array = np.asarray(ids)
    if array.size == 0:
        return np.empty(0, dtype)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ModelError(
            f"the tokenizer returned {array.dtype} of shape {array.shape} for {path!r} instead of a list of ids"
        )
    low, high, limit = int(array.min()), int(array.max()), int(np.iinfo(dtype).max)
    if low < 0 or high > limit:
        wrong = low if low < 0 else high
        raise ModelError(
            f"the tokenizer returned token {wrong} for {path!r}, outside 0 to {limit}: store a wider dtype"
        )
    return array.astype(dtype)
