"""``RemoteFiles``: what the kinds of storage that URLs name have in common.

Such storage has objects, no folders, and writes an object completely and durably, or not at all.
"""

import io
import mmap
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

import google_crc32c

from knnstore.errors import CorruptStoreError
from knnstore.files.failures import storage_errors
from knnstore.files.guard import check_removal, check_write
from knnstore.files.lease import Lease, describe_holder, is_held, parse_holder
from knnstore.files.protocol import ConditionError, Description, Entry, Files, Mapped, Say, Version
from knnstore.files.remotepath import RemotePath, remote
from knnstore.wording import command

_TAIL = 4  # bytes of the checksum that a chunk ends in
_REQUESTS_AT_ONCE = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


class RemoteFiles(Files):
    """The verbs of storage for ``RemotePath``. A kind of storage needs the five methods that are abstract here."""

    leases = True
    fetches = True

    @abstractmethod
    def get(self, path: RemotePath, begin: int = 0, end: int | None = None, version: Version | None = None) -> bytes:
        """Return bytes ``[begin, end)`` of an object. Raises ConditionError if it isn't the given ``version``."""

    @abstractmethod
    def describe(self, path: Path) -> Description:
        """Describe an object. Raises FileNotFoundError if it doesn't exist."""

    @abstractmethod
    def put(self, path: RemotePath, data: bytes, only: Version | bool | None = False) -> Version:
        """Write an object, visible to everybody on return. ``only``: see ``Files.write``."""

    @abstractmethod
    def objects(self, path: RemotePath) -> Iterator[tuple[RemotePath, int]]:
        """Yield every object below a path, with its bytes."""

    @abstractmethod
    def delete(self, paths: Sequence[RemotePath]) -> None:
        """Remove objects. May raise FileNotFoundError for one that doesn't exist."""

    # what a service may do better

    def put_file(self, path: RemotePath, file: IO[bytes]) -> None:
        """Write the whole contents of a file, open for reading, as an object."""
        file.seek(0)
        self.put(path, file.read())

    def read_version(self, path: Path) -> tuple[Version, bytes]:
        """See Files."""
        while True:
            version = self.describe(path).version
            with suppress(ConditionError):
                return version, self.get(remote(path), version=version)

    def has_objects(self, path: RemotePath) -> bool:
        """Return whether there is an object below a path."""
        return next(self.objects(path), None) is not None

    def names(self, path: RemotePath) -> list[str]:
        """Return the names of the objects and folders in a folder, sorted."""
        return sorted({below.relative_to(path).parts[0] for below, _ in self.objects(path)})

    def folders(self, path: Path) -> list[str]:
        """See Files."""
        names = (below.relative_to(remote(path)).parts for below, _ in self.objects(remote(path)))
        return sorted({first for first, *deeper in names if deeper})

    # the verbs

    def open(self, path: Path) -> BinaryIO:
        """See Files."""
        return io.BytesIO(self.read(path))

    def read(self, path: Path, begin: int = 0, end: int | None = None) -> bytes:
        """See Files."""
        return self.get(remote(path), begin, end)

    def load(self, path: Path) -> memoryview:
        """See Files."""
        return memoryview(self.read(path))

    def map(self, path: Path, size: int) -> Mapped:
        """See Files. Raises CorruptStoreError if the chunk fails the checksum that it ends in."""
        data = self.read(path)
        if int(google_crc32c.value(data[:-_TAIL])).to_bytes(_TAIL, "little") != data[-_TAIL:]:
            raise CorruptStoreError(f"{path} is damaged: build the index again with {command('index', overwrite=True)}")
        memory = mmap.mmap(-1, size)
        memory[:] = data[:size].ljust(size, b"\0")  # the caller refuses one of another size
        return _Fetched(len(data), memory)

    def entries(self, path: Path) -> Iterator[Entry]:
        """See Files."""
        yield from (Entry(path, size) for path, size in sorted(self.objects(remote(path))))

    def write(self, path: Path, data: bytes, only: Version | bool | None = False) -> Version:
        """See Files."""
        check_write(path)
        return self.put(remote(path), data, only)

    @contextmanager
    def replacing_together(self, paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
        """See Files."""
        with ExitStack() as stack:
            asides = [stack.enter_context(self.replacing_path(path)) for path in paths]
            yield [stack.enter_context(aside.open("wb")) for aside in asides]

    @contextmanager
    def replacing_path(self, path: Path) -> Iterator[Path]:
        """See Files."""
        with tempfile.TemporaryDirectory(prefix="knnstore-") as folder:
            aside = Path(folder) / path.name
            with storage_errors("write", aside):
                yield aside
            check_write(path)
            with aside.open("rb") as file:
                self.put_file(remote(path), file)

    def copy(self, source: Path, target: Path) -> None:
        """See Files."""
        self.write(target, self.read(source))

    def remove_below(self, path: Path, first: str = "") -> int:
        """See Files. What is removed is listed first, see ``guard.check_removal``."""
        objects = list(self.objects(remote(path)))
        if objects:
            check_removal(objects[0][0])
            with suppress(FileNotFoundError):
                self.delete([path for path, _ in objects])
        return sum(size for _, size in objects)

    @contextmanager
    def lock(self, path: Path, holder: dict[str, Any], say: Say) -> Iterator[Lease]:
        """See Files."""
        lease = Lease(self, path, holder, say)
        try:
            yield lease
        finally:
            lease.release()

    def holder(self, path: Path) -> str | None:
        """See Files."""
        record = self._lock_record(path)
        return describe_holder(record) if is_held(record) else None

    def token(self, path: Path) -> str:
        """See Files."""
        return str(self._lock_record(path).get("token", ""))

    # what only disks need

    def make_folder(self, path: Path) -> None:
        """Do nothing: folders exist with their objects."""

    def flush(self, paths: Iterable[Path]) -> None:
        """Do nothing: what is written is durable."""

    def require_plain(self, root: Path) -> None:
        """Do nothing: there are only objects."""

    def remove_leftovers(self, root: Path) -> None:
        """Do nothing: an object is never half-written."""

    def _lock_record(self, path: Path) -> dict[str, Any]:
        try:
            return parse_holder(self.read(path))
        except FileNotFoundError:
            return {}


@dataclass(frozen=True, slots=True, eq=False)
class _Fetched:
    """See ``protocol.Mapped``: a file that was fetched whole."""

    size: int
    memory: mmap.mmap

    def require(self, begin: int, end: int) -> None:
        """Do nothing: everything is there."""

    def will_need(self, begin: int, end: int) -> None:
        """Do nothing: everything is there."""


def at_once(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``read(item)`` of each item in order, with many requests at a time."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        yield from pool.map(read, items)
