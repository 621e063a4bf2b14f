"""The files of a corpus in reading order, in a table on disk, so that memory doesn't grow with their number."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

from knnstore.corpus.formats import RECORD_KINDS, Kind, type_of
from knnstore.errors import DiskFullError, ResourceError
from knnstore.wording import option

Reason = Literal["", "type", "field", "card", "link", "choice"]
"""Why a file is left out: its type isn't text, no record has the text field, it is the card of a data set, it is
reached by a link out of the corpus, or the user's patterns exclude it. Empty for files that are read."""

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -8192;
CREATE TABLE met (
    argument INTEGER, path BLOB, kind TEXT, bytes INTEGER, identity BLOB, reason TEXT, outside INTEGER, type TEXT
);
CREATE TABLE source (
    number INTEGER PRIMARY KEY, path BLOB, kind TEXT, bytes INTEGER, beside BLOB, beside_bytes INTEGER,
    outside INTEGER, type TEXT
);
"""
# BLOBs are compared byte by byte; sorts larger than the cache spill to disk
_SORT = """
INSERT INTO source
SELECT row_number() OVER (ORDER BY argument, path) - 1, path, kind, bytes, x'', 0, outside, type FROM (
    SELECT *, row_number() OVER (PARTITION BY identity ORDER BY argument, path) AS time FROM met WHERE reason = ''
) WHERE time = 1
"""
CARD = b"readme.md"
# A card without data in or below its folder is a document. Paths below a folder `a/` sort from `a/` to before `a0`,
# because `0` follows `/` in ASCII.
_KEEP_OTHER_CARDS = f"""
UPDATE met SET reason = '' WHERE reason = 'card' AND NOT EXISTS (
    SELECT 1 FROM met AS data WHERE data.argument = met.argument
    AND data.path > substr(met.path, 1, length(met.path) - {len(CARD)})
    AND (length(met.path) = {len(CARD)}
        OR data.path < CAST(substr(met.path, 1, length(met.path) - {len(CARD)} - 1) || '0' AS BLOB))
    AND data.reason = '' AND data.kind IN {RECORD_KINDS}
)
"""
_LEFT_OUT = """
SELECT type, reason, count(*), sum(bytes) FROM (
    SELECT path, max(type) AS type, max(reason) AS reason, max(bytes) AS bytes FROM met
    WHERE reason != '' AND path NOT IN (SELECT path FROM source) GROUP BY path
) GROUP BY type, reason ORDER BY sum(bytes) DESC, type, reason
"""
_TAKEN = "SELECT type, '', count(*), sum(bytes + beside_bytes) FROM source GROUP BY type ORDER BY sum(bytes) DESC, type"
_UNREAD = """
SELECT argument, sum(bytes * (reason = '')), sum(bytes * (reason IN ('type', 'field', 'link'))) FROM (
    SELECT DISTINCT argument, path, bytes, reason FROM met
) GROUP BY argument
"""
_SELECT = "SELECT path, kind, bytes, beside, beside_bytes FROM source"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the corpus.

    ``path``: the argument as given by the user, joined by ``/`` with the path inside it. ``bytes``: size on disk.
    ``folder``: base of a relative path, for readers in another folder. ``beside``: for the target side of two parallel
    files, the source side, of ``beside_bytes``.
    """

    path: str
    kind: Kind
    bytes: int
    folder: str = ""
    beside: str = ""
    beside_bytes: int = 0


class Met(NamedTuple):
    """A file found by the ``argument``-th argument; ``identity`` identifies the file.

    ``kind`` is None if the file is left out, for ``reason``. ``outside``: reached by a link out of the corpus.
    """

    argument: int
    path: bytes
    kind: Kind | None = None
    size: int = 0
    identity: bytes = b""
    reason: Reason = ""
    outside: bool = False


class FileType(NamedTuple):
    """Number and bytes of the files of a type, read (``reason`` is empty) or left out."""

    type: str
    reason: Reason
    files: int
    bytes: int

    @property
    def label(self) -> str:
        """Return the type and the reason as text for people."""
        reasons = {
            "field": " without the text field",
            "card": " (the card of the data)",
            "link": " by links out of the corpus",
            "choice": f" by {option('include')} or {option('exclude')}",
        }
        return f"{self.type or 'without a suffix'}{reasons.get(self.reason, '')}"


class Listing(Sequence[Source]):
    """Files in reading order, in an anonymous file in the system's temporary folder.

    Arguments keep their order; the files of one argument are sorted by the bytes of their paths. A file found twice,
    under any names, is listed once. ``left_out``: types of the files that aren't read, by size. ``outside``: number of
    files read through links out of the corpus. ``shares``: for each argument, the bytes of the files that are read, and
    of those that can't be read or are behind such links.
    """

    def __init__(self, met: Iterable[Met], folder: str = "") -> None:
        """``folder``: base of relative paths. Raises ResourceError if the table can't be written."""
        self._folder = folder
        with _naming_errors():
            self._table = sqlite3.connect("", check_same_thread=False)
            self._table.executescript(_TABLES)
            rows = ((*file, type_of(file.path)) for file in met)
            self._table.executemany("INSERT INTO met VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            if self._table.execute("SELECT 1 FROM met WHERE reason = 'card' LIMIT 1").fetchone():
                self._table.execute("CREATE INDEX met_paths ON met (argument, path)")
                self._table.execute(_KEEP_OTHER_CARDS)
            self._length = self._table.execute(_SORT).rowcount
            self.left_out = tuple(FileType(*row) for row in self._table.execute(_LEFT_OUT))
            self.shares: tuple[tuple[int, int, int], ...] = tuple(self._table.execute(_UNREAD))
            self.outside: int = self._table.execute("SELECT coalesce(sum(outside), 0) FROM source").fetchone()[0]
            self._table.execute("DROP TABLE met")

    @property
    def taken(self) -> tuple[FileType, ...]:
        """Return the types of the files that are read, by size."""
        return tuple(FileType(*row) for row in self._table.execute(_TAKEN))

    @property
    def ignored(self) -> int:
        """Return the number of files that are left out."""
        return sum(file_type.files for file_type in self.left_out)

    def add(self, sources: Iterable[Source]) -> None:
        """Append files."""
        for source in sources:
            path, beside = source.path.encode(), source.beside.encode()
            row = (path, source.kind, source.bytes, beside, source.beside_bytes, False, type_of(path))
            with _naming_errors():
                self._table.execute("INSERT INTO source VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (self._length, *row))
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
            return tuple(self[position] for position in chosen)
        return tuple(self._rows(chosen.start, chosen.stop))

    @property
    def bytes(self) -> int:
        """Return the total size of all files."""
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
            f"the list of the corpus' files can't be kept on disk: {error}. It needs about 0.4 KB of temporary space "
            "per file: set TMPDIR to a folder with enough space"
        ) from error
