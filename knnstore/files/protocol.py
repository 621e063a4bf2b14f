"""``Files``: what knnstore asks of a place that holds files, such as a disk or a bucket.

Each kind of place is one implementation. Two properties tell the kinds apart:

``leases``
    There are no locks that the system releases when their holder dies. A writer holds a lease instead, which lapses.
    Its holder may only have been frozen and write again later, so whatever a writer makes has its epoch in its name.
    Readers can't be seen.
``fetches``
    A read is a request. Whatever is mapped is fetched, and verified, when it is first needed, and many requests at a
    time take as long as one.
"""

import mmap
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, NamedTuple, Protocol

from knnstore.errors import ResourceError
from knnstore.files.sums import Sums


class ConditionError(Exception):
    """The file isn't the version that the condition of a write demands."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a file's content: in object storage as the service identifies it."""

    e_tag: str | None
    version: str | None

    @property
    def condition(self) -> dict[str, str]:
        """Return the condition for a request."""
        both = {"e_tag": self.e_tag, "version": self.version}
        return {name: value for name, value in both.items() if value is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """Size in bytes, time of writing in seconds since 1970, version, and the checksums that the place keeps, if any."""

    size: int
    modified: float
    version: Version
    sums: Sums | None = None


class Entry(NamedTuple):
    """Something in a folder that isn't a folder; ``kind`` describes it if it isn't a regular file."""

    path: Path
    bytes: int
    kind: str | None = None


class Mapped(Protocol):
    """A file as memory, of which any part may have to be fetched first."""

    @property
    def size(self) -> int:
        """Return the bytes of the whole file."""
        ...

    @property
    def memory(self) -> mmap.mmap:
        """Return the mapped bytes, writable copy-on-write."""
        ...

    def require(self, begin: int, end: int) -> None:
        """Make sure that bytes ``[begin, end)`` are in the memory; if fetched, verified."""
        ...

    def will_need(self, begin: int, end: int) -> None:
        """Have bytes ``[begin, end)`` read in the background."""
        ...


class WriteLock(Protocol):
    """The lock of a writer. ``epoch``: of this writer; ``taken_over``: the previous holder never released the lock."""

    epoch: int
    taken_over: bool

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch of this writer. Raises LockedError if another writer has taken over the lock."""
        ...

    def require(self) -> None:
        """Raise LockedError if another writer has taken over the lock."""
        ...


Say = Callable[[str], None]
"""Called with a message if there is something to wait for."""


class Files(ABC):
    """The verbs of one kind of place; each path given must be of this kind.

    Whatever fails raises ResourceError with the path, the cause and the next step, but a missing file
    FileNotFoundError.
    """

    leases: ClassVar[bool] = False
    fetches: ClassVar[bool] = False

    @abstractmethod
    def open(self, path: Path) -> BinaryIO:
        """Open a regular file for reading, without following links or blocking. Raises OSError for anything else."""

    @abstractmethod
    def read(self, path: Path, begin: int = 0, end: int | None = None) -> bytes:
        """Return bytes ``[begin, end)`` of a file (None: to its end), or as many as it has."""

    @abstractmethod
    def load(self, path: Path) -> memoryview:
        """Return the whole file: mapped where that is possible, else in memory."""

    @abstractmethod
    def map(self, path: Path, size: int) -> Mapped:
        """Map the first ``size`` bytes of a chunk of an uncompressed array."""

    @abstractmethod
    def describe(self, path: Path) -> Description:
        """Describe a file."""

    @abstractmethod
    def entries(self, path: Path) -> Iterator[Entry]:
        """Yield everything below a folder but folders, in a fixed order."""

    @abstractmethod
    def folders(self, path: Path) -> list[str]:
        """Return the names of the folders in a folder, sorted; none if there is no such folder."""

    @abstractmethod
    def write(self, path: Path, data: bytes, only: Version | bool | None = False) -> Version:
        """Replace a file, durably: readers, and a crash, see either the old content or the new one.

        ``only``: the version that the file must have, or None if it must not exist; otherwise raises ConditionError.
        """

    @abstractmethod
    def replacing_together(self, paths: Sequence[Path]) -> AbstractContextManager[list[BinaryIO]]:
        """Open files that replace ``paths``, each complete and flushed, when the context ends without error.

        Their names are durable only after ``flush`` of their folders.
        """

    @abstractmethod
    def replacing_path(self, path: Path) -> AbstractContextManager[Path]:
        """Yield the local name of a file that replaces ``path``, durably, when the context ends without error."""

    @abstractmethod
    def copy(self, source: Path, target: Path) -> None:
        """Copy a file within the place."""

    @abstractmethod
    def remove_below(self, path: Path, first: str = "") -> int:
        """Remove a folder, if it exists, durably; return the bytes of its files.

        ``first``: a pattern of the files that are removed before all others.
        """

    @abstractmethod
    def make_folder(self, path: Path) -> None:
        """Make a folder and its missing parents, durably."""

    @abstractmethod
    def flush(self, paths: Iterable[Path]) -> None:
        """Flush files, or the names in folders, to the device."""

    @abstractmethod
    def require_plain(self, root: Path) -> None:
        """Raise CorruptStoreError if anything below ``root`` is a link, a FIFO, a socket or a device."""

    @abstractmethod
    def remove_leftovers(self, root: Path) -> None:
        """Remove whatever a killed writer left half-written below ``root``."""

    @abstractmethod
    def lock(self, path: Path, holder: dict[str, Any], say: Say) -> AbstractContextManager[WriteLock]:
        """Hold the lock at ``path`` for writing. ``holder`` describes this process.

        Raises LockedError that names another holder.
        """

    @abstractmethod
    def holder(self, path: Path) -> str | None:
        """Describe the holder of the lock at ``path``, for people; None if there is none. Never takes the lock."""

    @abstractmethod
    def token(self, path: Path) -> str:
        """Return what identifies the holder of the lock at ``path``; empty if there is none."""

    @abstractmethod
    def read_version(self, path: Path) -> tuple[Version, bytes]:
        """Return the current version and bytes of a file. Raises FileNotFoundError if it doesn't exist."""

    def version_of(self, path: Path) -> Version | None:
        """Return the current version of a file; None if it doesn't exist."""
        try:
            return self.describe(path).version
        except (FileNotFoundError, NotADirectoryError):
            return None

    def replace_only(self, path: Path, data: bytes, version: Version | None) -> Version:
        """Write a file if it has that version (None: if it doesn't exist). Raises ConditionError otherwise.

        An earlier attempt whose answer was lost counts as done, since no two writers write the same ``data``.
        """
        try:
            return self.write(path, data, only=version)
        except ConditionError:
            with suppress(FileNotFoundError, ResourceError):
                present, there = self.read_version(path)
                if there == data:
                    return present
            raise

    # what only some kinds of places need

    def hold(self, path: Path) -> IO[bytes] | None:
        """Share a lock on a file for as long as the result stays open; None if the place has no such locks."""
        return None

    def is_held(self, path: Path) -> bool:
        """Return whether another process shares a lock on the file."""
        return False

    def free_bytes(self, path: Path) -> int:
        """Return the free bytes of the device of ``path``."""
        return sys.maxsize

    def most_maps(self, size: int) -> int | None:
        """Return how many files of ``size`` bytes may be mapped at a time; None if there is no limit."""
        return None
