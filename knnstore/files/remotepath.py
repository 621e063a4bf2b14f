"""``RemotePath``: the URL of a file or a store as a path; and the kinds of storage that URLs name."""

import os
import stat
from collections.abc import Generator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

from knnstore.errors import UsageError
from knnstore.files.guard import check_removal
from knnstore.urls import split_url
from knnstore.wording import option

if TYPE_CHECKING:
    from knnstore.files.remote import RemoteFiles

_MAGIC = frozenset("*?[")
_OBJECT_STORAGE = ("s3", "gs", "az")
_others: "dict[str, RemoteFiles]" = {}


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
        return _others.get(self.parts[0].rstrip(":")) or _object_storage()

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


@cache
def _object_storage() -> "RemoteFiles":
    from knnstore.files.objects.files import ObjectFiles  # noqa: PLC0415 - most stores don't need obstore

    return ObjectFiles()


def register(scheme: str, kind: "RemoteFiles") -> None:
    """Have the URLs of a scheme name a kind of storage."""
    _others[scheme] = kind


def schemes() -> tuple[str, ...]:
    """Return the schemes of the URLs that name storage."""
    return (*_OBJECT_STORAGE, *_others)


def is_url(text: str) -> bool:
    """Return whether the text is a URL of storage."""
    return "://" in text and text.partition("://")[0] in schemes()


def path_of(text: str) -> Path:
    """Return the local path or the ``RemotePath`` of a text."""
    if not is_url(text):
        return Path(text)
    split_url(text)  # refuses credentials before they are shown
    path = RemotePath(text)
    if len(path.parts) < 2 or any(part == ".." for part in path.parts):
        raise UsageError(f"{text!r} has no bucket: give s3://BUCKET/NAME")
    return path


def remote(path: Path) -> RemotePath:
    """Return the path, which is one of storage."""
    assert isinstance(path, RemotePath)
    return path
