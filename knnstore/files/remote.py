"""Files behind URLs: ``RemotePath``, and what the kinds of storage that URLs name have in common.

Such storage has objects, no folders, and writes an object completely and durably, or not at all.
"""

import io
import mmap
import os
import stat
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar

import google_crc32c

from knnstore.errors import CorruptStoreError, UsageError
from knnstore.files.failures import storage_errors
from knnstore.files.guard import check_removal, check_write
from knnstore.files.lease import Lease, describe_holder, is_held, parse_holder
from knnstore.files.protocol import ConditionError, Description, Entry, Files, Mapped, Say, Version
from knnstore.urls import split_url
from knnstore.wording import command, option

_TAIL = 4  # bytes of the checksum that a chunk ends in
_REQUESTS_AT_ONCE = 32
_MAGIC = frozenset("*?[")
_kinds: dict[str, "RemoteFiles"] = {}

Item = TypeVar("Item")
Result = TypeVar("Result")


# Whatever takes the path of a store takes a RemotePath too, so for type checkers it is a Path. At run time it isn't,
# so that Path(remote), which would silently name a local file, is refused like every use by the operating system.
if TYPE_CHECKING:
    _Base = Path
else:
    _Base = object


class RemotePath(_Base):
    """``s3://bucket/key`` as a path, with the methods of ``pathlib`` that stores need.

    Those that access the file system send requests; passing the path to the operating system raises UsageError. A
    folder exists as long as there is an object below it, so folders are neither made nor removed.

    Raises ResourceError if a request fails after several attempts.
    """

    __slots__ = ("_pure",)

    def __init__(self, text: "str | PurePosixPath") -> None:
        self._pure = text if isinstance(text, PurePosixPath) else PurePosixPath(text)

    def __str__(self) -> str:
        scheme, *names = self._pure.parts
        return f"{scheme}//{'/'.join(names)}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __hash__(self) -> int:
        return hash(self._pure)

    def __eq__(self, other: object) -> bool:
        return self._pure == other._pure if isinstance(other, RemotePath) else NotImplemented

    def __lt__(self, other: "RemotePath") -> bool:  # type: ignore[override]
        return self._pure < other._pure

    def __truediv__(self, name: str | os.PathLike[str]) -> "RemotePath":
        return RemotePath(self._pure / name)

    @property
    def parts(self) -> tuple[str, ...]:
        """Return scheme, bucket and names."""
        return self._pure.parts

    @property
    def name(self) -> str:
        """Return the last name."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """Return the last name without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """Return the suffix of the last name."""
        return self._pure.suffix

    @property
    def parent(self) -> "RemotePath":
        """Return the folder of the path."""
        return RemotePath(self._pure.parent)

    @property
    def parents(self) -> "tuple[RemotePath, ...]":
        """Return all folders of the path, the nearest first."""
        return tuple(RemotePath(parent) for parent in self._pure.parents)

    def joinpath(self, *names: str | os.PathLike[str]) -> "RemotePath":
        """Return the path of names below this one."""
        return RemotePath(self._pure.joinpath(*names))

    def with_name(self, name: str) -> "RemotePath":
        """Return the path with another last name."""
        return RemotePath(self._pure.with_name(name))

    def relative_to(self, root: "RemotePath") -> PurePosixPath:  # type: ignore[override]
        """Return the names below ``root``. Raises ValueError if the path isn't below it."""
        return self._pure.relative_to(root._pure)

    def as_posix(self) -> str:
        """Return the text of the path."""
        return str(self)

    def __fspath__(self) -> NoReturn:
        raise UsageError(
            f"{self} is in object storage, which doesn't support this: copy the store to a disk with the service's own "
            f"tools ('aws s3 sync', 'gcloud storage rsync', 'azcopy sync') and give the copy with {option('store')}"
        )

    @property
    def files(self) -> "RemoteFiles":
        """Return the storage that the URL names."""
        return _kinds[self.parts[0].rstrip(":")]

    @property
    def key(self) -> str:
        """Return the object's name in its bucket."""
        return "/".join(self.parts[2:])

    def absolute(self) -> "RemotePath":
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        """Return the path itself, because there are no links."""
        return self

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return size and time of writing of an object or folder."""
        try:
            description = self.files.describe(self)
        except FileNotFoundError:
            if not self.is_dir():
                raise
            return os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        seconds = int(description.modified)
        return os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, description.size, seconds, seconds, seconds))

    def is_file(self) -> bool:
        """Return whether the object exists."""
        try:
            self.files.describe(self)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether there is an object below."""
        return self.files.has_objects(self)

    def exists(self) -> bool:
        """Return whether this is an object or has one below."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """Return False: there are no links."""
        return False

    def iterdir(self) -> Generator["RemotePath", None, None]:
        """Yield the contents of the folder."""
        yield from (self / name for name in self.files.names(self))

    def glob(self, pattern: str) -> Generator["RemotePath", None, None]:
        """Yield the paths that match a pattern of names separated by slashes."""
        matches = [self]
        for part in pattern.split("/"):
            if _MAGIC & set(part):
                matches = [entry for folder in matches for entry in folder.iterdir() if fnmatchcase(entry.name, part)]
            else:
                matches = [entry for folder in matches if (entry := folder / part).exists()]
        yield from matches

    def rglob(self, pattern: str) -> Generator["RemotePath", None, None]:
        """Yield all objects below whose names match the pattern."""
        yield from (path for path, _ in self.files.objects(self) if fnmatchcase(path.name, pattern))

    def read_bytes(self) -> bytes:
        """Return the whole object. Raises FileNotFoundError if it doesn't exist."""
        return self.files.read(self)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the whole object as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        """Write the object, as in ``pathlib``."""
        self.files.write(self, bytes(data))
        return memoryview(data).nbytes

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: the folders of an object exist with it."""

    def rmdir(self) -> None:
        """Do nothing: a folder disappears with the last object in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        check_removal(self)
        try:
            self.files.delete([self])
        except FileNotFoundError:
            if not missing_ok:
                raise


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


def register(scheme: str, kind: RemoteFiles) -> None:
    """Have the URLs of a scheme name a kind of storage."""
    _kinds[scheme] = kind


def schemes() -> tuple[str, ...]:
    """Return the schemes of the URLs that name storage."""
    return tuple(_kinds)


def is_url(text: str) -> bool:
    """Return whether the text is a URL of storage."""
    return "://" in text and text.partition("://")[0] in _kinds


def path_of(text: str) -> Path:
    """Return the local path or the ``RemotePath`` of a text."""
    if not is_url(text):
        return Path(text)
    split_url(text)  # refuses credentials before they are shown
    path = RemotePath(text)
    if len(path.parts) < 2 or any(part == ".." for part in path.parts):
        raise UsageError(f"{text!r} has no bucket: give s3://BUCKET/NAME")
    return path


def at_once(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``read(item)`` of each item in order, with many requests at a time."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        yield from pool.map(read, items)


def remote(path: Path) -> RemotePath:
    """Return the path, which is one of storage."""
    assert isinstance(path, RemotePath)
    return path
