"""The documents of a segment: the origin of each and the position of its tokens (Parquet)."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from knnstore.arrays import Int64
from knnstore.errors import CorruptStoreError, ResourceError
from knnstore.files import open_regular

VALUE_CHUNK_ROWS = 2**22
"""Rows per chunk of the array of tokens."""

DOCUMENTS_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("record", pa.int64()),
        ("id", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.binary(32)),
        # stored: rows [first_row, first_row + tokens) of keys and values
        ("first_row", pa.int64()),
        ("tokens", pa.int64()),
        # held out: [heldout_first, heldout_first + heldout_tokens) of the array heldout, never stored
        ("heldout_first", pa.int64()),
        ("heldout_tokens", pa.int64()),
        ("heldout_bytes", pa.int64()),
    ]
)

_BATCH = 65_536


_MOST_TOKENS = 2**48
_WHAT, _WHERE = DOCUMENTS_SCHEMA.names[:5], DOCUMENTS_SCHEMA.names[5:]
_NULLABLE = ("record", "id")
# Every document takes more than a quarter of a byte in the file. A file that claims more documents is damaged, and
# reading it could exhaust the memory.
_MOST_ROWS_A_BYTE = 4


@dataclass(frozen=True, slots=True)
class DocumentName:
    """The readable origin of a document: ``path``, and its record number or id if the file holds many."""

    path: str
    record: int | None
    id: str | None

    def __str__(self) -> str:
        label = self.record if self.id is None else self.id
        name = self.path if label is None else f"{self.path}#{label}"
        # untrusted file names must not contain control sequences of a terminal
        return name if name.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


class DocumentTable:
    """The documents of a segment in corpus order; a row's document is found by binary search.

    The row ranges, 40 bytes per document, are read at once; the origins, six times as much, on first use. ``check`` is
    called before each read of the file and raises if the file isn't what was written.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._check = check
        columns: list[Int64] = [column.to_numpy() for column in self._read(_WHERE).columns]
        self.first_row, self.tokens, self.heldout_first, self.heldout_tokens, self.heldout_bytes = columns
        for first, count in ((self.first_row, self.tokens), (self.heldout_first, self.heldout_tokens)):
            # the sum as a float, because an int64 sum could wrap around to a plausible value
            if (count < 0).any() or count.sum(dtype=float) > _MOST_TOKENS or (first != np.cumsum(count) - count).any():
                raise CorruptStoreError(f"{path}: the documents' rows don't follow each other")

    def __len__(self) -> int:
        return len(self.first_row)

    @property
    def rows(self) -> int:
        """Return the total number of rows."""
        return int(self.first_row[-1] + self.tokens[-1]) if len(self) else 0

    def __getitem__(self, index: int) -> DocumentName:
        record = self.table.slice(index, 1).select(["path", "record", "id"]).to_pylist()[0]
        return DocumentName(**record)

    def locate(self, rows: Int64) -> Int64:
        """Return the index of the document that holds each row: int64, in the shape of ``rows``."""
        # side="right" skips documents without rows (held out) that begin at the same row
        return np.searchsorted(self.first_row + self.tokens, rows, side="right").astype(np.int64)

    def heldout(self) -> Int64:
        """Return the indices of the documents that have a held-out part."""
        return np.flatnonzero(self.heldout_tokens > 0).astype(np.int64)

    @cached_property
    def table(self) -> pa.Table:
        """Return the columns ``path``, ``record``, ``id``, ``bytes`` and ``sha256``."""
        table = self._read(_WHAT)
        if len(table) != len(self):
            raise CorruptStoreError(f"{self._path} has changed while it was read")
        return table

    @cached_property
    def sha256(self) -> np.ndarray[Any, np.dtype[np.bytes_]]:
        """Return the SHA-256 of each document's text, of NumPy's dtype S32: (documents,)."""
        return digests_of(self.table)

    def digest(self, index: int) -> bytes:
        """Return the SHA-256 of a document's text."""
        value: bytes = self.table.column("sha256")[index].as_py()
        return value

    def find_texts(self, digests: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """Return index and digest of the documents whose texts have one of these SHA-256 digests, in order."""
        column = self._read(["sha256"]).column(0)
        numbers = np.flatnonzero(pc.is_in(column, value_set=pa.array(digests, pa.binary(32))).to_numpy())
        return list(zip(numbers.tolist(), column.take(numbers).to_pylist(), strict=True))

    def origins(self) -> Iterator[DocumentName]:
        """Yield the origin of each document, in order."""
        for batch in self.table.select(["path", "record", "id"]).to_batches(max_chunksize=_BATCH):
            yield from (DocumentName(**record) for record in batch.to_pylist())

    def paths(self) -> set[str]:
        """Return the paths of the files that the documents came from."""
        return set(self.table.column("path").unique().to_pylist())

    @property
    def text_bytes(self) -> int:
        """Return the UTF-8 bytes of all documents, held-out ones included."""
        return int(self.table.column("bytes").to_numpy().sum())

    def _read(self, columns: list[str]) -> Any:
        self._check()
        return _read(self._path, columns)


def plain_documents(documents: Iterable[tuple[str, int, bytes]]) -> pa.Table:
    """Return a table of documents without held-out parts, given as path, number of tokens and SHA-256."""
    rows: list[dict[str, object]] = []
    first = 0
    for path, tokens, sha256 in documents:
        row: dict[str, object] = dict.fromkeys(DOCUMENTS_SCHEMA.names, 0)
        rows.append(
            row | {"path": path, "record": None, "id": None, "sha256": sha256, "first_row": first, "tokens": tokens}
        )
        first += tokens
    return pa.Table.from_pylist(rows, DOCUMENTS_SCHEMA)


def digests_of(table: pa.Table) -> np.ndarray[Any, np.dtype[np.bytes_]]:
    """Return the column ``sha256`` of a table, which has no nulls, as NumPy's dtype S32: (documents,)."""
    chunks = [chunk for chunk in table.column("sha256").chunks if len(chunk)]
    places = [slice(chunk.offset, chunk.offset + len(chunk)) for chunk in chunks]
    arrays = [np.frombuffer(chunk.buffers()[1], "S32")[place] for chunk, place in zip(chunks, places, strict=True)]
    return np.concatenate([np.empty(0, "S32"), *arrays])


def _read(path: Path, columns: list[str]) -> Any:
    try:
        with open_regular(path) as source, pq.ParquetFile(source) as file:
            if file.schema_arrow.remove_metadata() != DOCUMENTS_SCHEMA:
                raise CorruptStoreError(f"{path}: its columns are not those of a documents table")
            rows = file.metadata.num_rows
            if rows > _MOST_ROWS_A_BYTE * source.seek(0, os.SEEK_END):
                raise CorruptStoreError(f"{path} claims {rows} documents, more than its size can hold")
            table = file.read(columns, use_threads=False)
        table.validate(full=True)
    except ResourceError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise CorruptStoreError(f"{path} can't be read as Parquet: {error}") from error
    if any(table.column(name).null_count for name in columns if name not in _NULLABLE):
        raise CorruptStoreError(f"{path} has a null in a column that may not have nulls")
    return table
