"""The origins of a copied segment's rows: the documents of other segments, and their keys as the copy stores them.

While a segment is being copied, its temporary folder ``copy/`` has a table ``kept.parquet`` with one row per document,
from which tasks derive the origin of each of their rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.arrays import Bool, Int64
from knnstore.datastore.segment import Segment
from knnstore.datastore.tables import write_table
from knnstore.errors import CorruptStoreError
from knnstore.files import read_raw

COPY_FOLDER = "copy"
_KEPT = pa.schema([("source", pa.int32()), ("document", pa.int64()), ("rows", pa.bool_()), ("heldout", pa.bool_())])
_DECODED = 16384


@dataclass(frozen=True, slots=True, eq=False)
class KeptDocuments:
    """Documents of one segment, by ascending number, and whether their stored and held-out parts are copied."""

    segment: Segment
    documents: Int64
    rows: Bool
    heldout: Bool

    @classmethod
    def whole(cls, segment: Segment, documents: Int64) -> "KeptDocuments":
        """Return documents with all their parts."""
        every = np.ones(len(documents), np.bool_)
        return cls(segment, documents, every, every)

    @property
    def tokens(self) -> Int64:
        """Return the copied rows of each document: int64 (documents,)."""
        return self.segment.documents.tokens[self.documents] * self.rows

    @property
    def heldout_tokens(self) -> Int64:
        """Return the copied held-out tokens of each document: int64 (documents,)."""
        return self.segment.documents.heldout_tokens[self.documents] * self.heldout


class Origins:
    """Map the rows of a copied segment to their origins, and back."""

    def __init__(self, segment: Segment, sources: Sequence[Segment]) -> None:
        self.sources = sources
        self._table = segment.documents
        kept = _read_kept(segment.root)
        self._owner: Int64 = kept.column("source").to_numpy().astype(np.int64)
        self._document: Int64 = kept.column("document").to_numpy()
        self._rows: Bool = kept.column("rows").to_numpy(zero_copy_only=False)
        if len(self._owner) != len(self._table):
            raise CorruptStoreError(f"{segment.root} doesn't hold the documents that were to be copied: remove it")

    def of(self, rows: Int64) -> tuple[Int64, Int64]:
        """Return the source number of each of the copy's rows, and its row there: int64 (n,) each."""
        document = self._table.locate(rows)
        owner, old = self._owner[document], np.empty(len(rows), np.int64)
        for number, source in enumerate(self.sources):
            members = np.flatnonzero(owner == number)
            first = source.documents.first_row[self._document[document[members]]]
            old[members] = first + rows[members] - self._table.first_row[document[members]]
        return owner, old

    def documents(self, source: int) -> Int64:
        """Return the documents of a source whose rows are copied: int64 (n,), ascending."""
        return np.sort(self._document[(self._owner == source) & self._rows])

    def copied(self, source: int, rows: Int64) -> Int64:
        """Return the row in the copy of each row of a source, −1 if it has none: int64 (n,)."""
        members = np.flatnonzero((self._owner == source) & self._rows)
        table = self.sources[source].documents
        place = np.full(len(table), -1, np.int64)
        place[self._document[members]] = members
        document = table.locate(rows)
        copy = place[document]
        return np.where(copy < 0, -1, self._table.first_row[copy] + rows - table.first_row[document])


def recoded(stored: np.ndarray[Any, Any], source: Segment, target: Segment) -> np.ndarray[Any, Any]:
    """Return keys (n, d) as the target stores them: the same bytes unless the scales of the two segments differ."""
    new, old = target.codec.scales, source.codec.scales
    if new is None or old is None or np.array_equal(new, old):
        return stored
    result = np.empty_like(stored)
    for begin in range(0, len(stored), _DECODED):
        block = slice(begin, begin + _DECODED)
        result[block] = target.codec.encode(source.codec.decode(stored[block]))
    return result


def write_kept(segment: Path, sources: Sequence[KeptDocuments]) -> None:
    """Record which documents to copy, for the tasks."""
    columns = {
        "source": np.repeat(np.arange(len(sources), dtype=np.int32), [len(source.documents) for source in sources]),
        "document": np.concatenate([source.documents for source in sources]),
        "rows": np.concatenate([source.rows for source in sources]),
        "heldout": np.concatenate([source.heldout for source in sources]),
    }
    path = segment / COPY_FOLDER / "kept.parquet"
    write_table(path, pa.table(columns, schema=_KEPT))


def _read_kept(segment: Path) -> Any:
    path = segment / COPY_FOLDER / "kept.parquet"
    try:
        return pq.read_table(pa.BufferReader(read_raw(path)), schema=_KEPT)
    except (OSError, pa.ArrowException) as error:
        raise CorruptStoreError(f"{path} can't be read: run the same command again ({error})") from error
