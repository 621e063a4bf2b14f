"""The files of a corpus in reading order: a table on disk, so that memory doesn't grow with their number."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

from knnstore.errors import DiskFullError, ResourceError

Kind = Literal["text", "jsonl", "parquet", "tsv", "aligned"]

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -8192;
CREATE TABLE met (argument INTEGER, path BLOB, kind TEXT, bytes INTEGER, identity BLOB);
CREATE TABLE source (
    number INTEGER PRIMARY KEY, path BLOB, kind TEXT, bytes INTEGER, beside BLOB, beside_bytes INTEGER
);
"""
# BLOBs are compared byte by byte; sorts of more than the cache holds go through runs on disk
_SORT = """
INSERT INTO source SELECT row_number() OVER (ORDER BY argument, path) - 1, path, kind, bytes, x'', 0 FROM (
    SELECT *, row_number() OVER (PARTITION BY identity ORDER BY argument, path) AS time FROM met WHERE kind NOT NULL
) WHERE time = 1
"""
_COUNT_OTHERS = "SELECT count(*) FROM (SELECT 1 FROM met WHERE kind IS NULL GROUP BY argument, path)"
_SELECT = "SELECT path, kind, bytes, beside, beside_bytes FROM source"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the corpus.

    ``path`` is the argument as the user gave it, joined by ``/`` with the path inside it; ``bytes`` is its size
    on disk; ``folder`` is where a relative path starts, for a reader that works elsewhere. ``beside``: of the target
    side of two parallel files the source side, of ``beside_bytes``.
    """

    path: str
    kind: Kind
    bytes: int
    folder: str = ""
    beside: str = ""
    beside_bytes: int = 0


class Met(NamedTuple):
    """A file that the n-th ``argument`` leads to; ``kind`` is None if it isn't text; ``identity`` is the file's."""

    argument: int
    path: bytes
    kind: Kind | None = None
    size: int = 0
    identity: bytes = b""


class Listing(Sequence[Source]):
    """Files in reading order, in a file without a name in the system's temporary folder.

    Arguments keep their order; within one the files are sorted by the bytes of their paths. A file met twice, under
    whatever name, is there once. ``ignored`` counts the files of other kinds.
    """

    def __init__(self, met: Iterable[Met], folder: str = "") -> None:
        """``folder``: where relative paths start. Raises ResourceError where the table can't be written."""
        self._folder = folder
        with _naming_errors():
            self._table = sqlite3.connect("", check_same_thread=False)
            self._table.executescript(_TABLES)
            self._table.executemany("INSERT INTO met VALUES (?, ?, ?, ?, ?)", met)
            self.ignored: int = self._table.execute(_COUNT_OTHERS).fetchone()[0]
            self._length = self._table.execute(_SORT).rowcount
            self._table.execute("DROP TABLE met")

    def add(self, sources: Iterable[Source]) -> None:
        """Put files at the end."""
        for source in sources:
            row = (source.path.encode(), source.kind, source.bytes, source.beside.encode(), source.beside_bytes)
            with _naming_errors():
                self._table.execute("INSERT INTO source VALUES (?, ?, ?, ?, ?, ?)", (self._length, *row))
            self._length += 1

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Source]:
        return self._rows(0, self._length)

    @overload
    def __getitem__(self, number: int) -> Source: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[Source, ...]: ...

    def __getitem__(self, number: int | slice) -> Source | tuple[Source, ...]:
        chosen = range(self._length)[number]
        if isinstance(chosen, int):
            return next(self._rows(chosen, chosen + 1))
        if chosen.step != 1:
            return tuple(self[one] for one in chosen)
        return tuple(self._rows(chosen.start, chosen.stop))

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        total = self._table.execute("SELECT coalesce(sum(bytes + beside_bytes), 0) FROM source").fetchone()[0]
        return int(total)

    def _rows(self, begin: int, end: int) -> Iterator[Source]:
        with _naming_errors():
            for path, kind, size, beside, beside_size in self._table.execute(
                f"{_SELECT} WHERE number >= ? AND number < ? ORDER BY number", (begin, end)
            ):
                yield Source(path.decode(), kind, size, self._folder, beside.decode(), beside_size)


@contextmanager
def _naming_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        kind = DiskFullError if "full" in str(error) else ResourceError
        raise kind(
            f"the list of the corpus' files can't be kept on disk: {error}. It takes some 0.4 KB a file of temporary "
            "space: set TMPDIR to a folder that has it"
        ) from error
