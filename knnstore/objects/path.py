"""``ObjectPath``: a ``pathlib`` path that is the URL of an object or of a folder of objects."""

import os
import stat
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PosixPath
from typing import IO, Any, NoReturn

from knnstore.errors import ResourceError, UsageError
from knnstore.objects.guard import check_removal, check_write
from knnstore.objects.service import SCHEMES, ConditionError, bucket_of, count, load_obstore, request
from knnstore.objects.sums import Sums, sums_from, sums_of, sums_of_file
from knnstore.urls import split_url

_DELETED_AT_ONCE = 1000
_PART_BYTES = 2**26  # up to this size one request writes an object, which leaves nothing behind if interrupted
_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an object's content, as identified by the service."""

    e_tag: str | None
    version: str | None

    @property
    def condition(self) -> dict[str, str]:
        """Return the condition for a request."""
        both = {"e_tag": self.e_tag, "version": self.version}
        return {name: value for name, value in both.items() if value is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """The service's description of an object: size, time of writing, version, and checksums if it has any."""

    size: int
    modified: datetime
    version: Version
    sums: Sums | None


class ObjectPath(PosixPath):
    """``s3://bucket/key`` as a path; ``gs://`` and ``az://`` likewise. It has no state besides its text.

    Methods of ``pathlib`` that access the file system send requests; passing the path to the operating system raises
    UsageError. A folder exists as long as there is an object below it, so folders are neither made nor removed.

    Raises ResourceError if a request fails after several attempts.
    """

    __slots__ = ()

    def __str__(self) -> str:
        scheme, colon, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest.lstrip('/')}" if colon and scheme in SCHEMES else scheme + colon + rest

    def __fspath__(self) -> NoReturn:
        raise UsageError(
            f"{self} is in object storage, which doesn't support this: copy the store to a disk with the service's own "
            "tools ('aws s3 sync', 'gcloud storage rsync', 'azcopy sync') and give the copy with --store"
        )

    @property
    def client(self) -> Any:
        """Return the client of the bucket."""
        return bucket_of(f"{self.parts[0]}//{self.parts[1]}")

    @property
    def key(self) -> str:
        """Return the object's name in its bucket."""
        return "/".join(self.parts[2:])

    def absolute(self) -> "ObjectPath":
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> "ObjectPath":
        """Return the path itself, because there are no links."""
        return self

    # queries

    def describe(self) -> Described:
        """Return the service's description of the object. Raises FileNotFoundError if it doesn't exist."""
        count(heads=1)
        url = str(self)
        answer = request("look at", url, lambda: load_obstore().get(self.client, self.key, options={"head": True}))
        return described(answer)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return size and time of writing of an object or folder."""
        try:
            description = self.describe()
        except FileNotFoundError:
            if not self.is_dir():
                raise
            return os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        seconds = int(description.modified.timestamp())
        return os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, description.size, seconds, seconds, seconds))

    def is_file(self) -> bool:
        """Return whether the object exists."""
        try:
            self.describe()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether there is an object below."""
        obstore, prefix = load_obstore(), self.key or None
        count(lists=1)
        first = request("list", str(self), lambda: next(obstore.list(self.client, prefix, chunk_size=1), None))
        return bool(first)

    def exists(self) -> bool:
        """Return whether this is an object or has one below."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """Return False: there are no links."""
        return False

    def iterdir(self) -> Generator["ObjectPath", None, None]:
        """Yield the contents of the folder."""
        count(lists=1)
        obstore, prefix = load_obstore(), self.key or None
        listed = request("list", str(self), lambda: obstore.list_with_delimiter(self.client, prefix))
        names = [*listed["common_prefixes"], *(entry["path"] for entry in listed["objects"])]
        yield from (self / str(name).rstrip("/").rpartition("/")[2] for name in sorted(names))

    def glob(self, pattern: str) -> Generator["ObjectPath", None, None]:
        """Yield the paths that match a pattern of names separated by slashes."""
        matches = [self]
        for part in pattern.split("/"):
            if _MAGIC & set(part):
                matches = [entry for folder in matches for entry in folder.iterdir() if fnmatchcase(entry.name, part)]
            else:
                matches = [entry for folder in matches if (entry := folder / part).exists()]
        yield from matches

    def rglob(self, pattern: str) -> Generator["ObjectPath", None, None]:
        """Yield all objects below whose names match the pattern."""
        yield from (path for path, _ in self.below() if fnmatchcase(path.name, pattern))

    def below(self) -> Generator[tuple["ObjectPath", int], None, None]:
        """Yield every object below, with its size."""
        obstore, prefix = load_obstore(), self.key or None
        objects = request("list", str(self), lambda: obstore.list(self.client, prefix).collect())
        count(lists=1 + len(objects) // 1000)
        begin = len(self.key) + 1 if self.key else 0
        yield from ((self / entry["path"][begin:], int(entry["size"])) for entry in objects)

    # reading

    def read_bytes(self) -> bytes:
        """Return the whole object, verified by its sums if it has any. Raises FileNotFoundError if it doesn't exist."""
        from knnstore.objects.whole import read_object  # noqa: PLC0415 - it imports this module

        return read_object(self)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the whole object as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def read_range(self, begin: int, end: int, version: Version | None = None) -> bytes:
        """Return bytes ``[begin, end)``. Raises ConditionError if the object no longer has the given ``version``."""
        if begin == end:
            return b""
        options: dict[str, Any] = {"range": (begin, end)}
        if version is not None and version.e_tag is not None:
            options["if_match"] = version.e_tag
        count(gets=1, read=end - begin)

        def get() -> bytes:
            return bytes(load_obstore().get(self.client, self.key, options=options).bytes())

        return request("read", str(self), get)

    def read_version(self) -> tuple[Version, bytes]:
        """Return the current version and bytes of the object. Raises FileNotFoundError if it doesn't exist."""
        count(gets=1)

        def get() -> tuple[Version, bytes]:
            answer = load_obstore().get(self.client, self.key)
            return described(answer).version, bytes(answer.bytes())

        version, data = request("read", str(self), get)
        count(read=len(data))
        return version, data

    # writing

    def put(self, data: Any, *, only: Version | bool | None = False) -> Version:
        """Write ``data`` (bytes-like) as the object's content, durable and visible to everybody on return.

        ``only``: the version that the object must have, or None if it must be new; otherwise raises ConditionError.
        """
        check_write(self)
        data = bytes(data)
        mode = "overwrite" if only is False else "create" if only is None else only.condition  # type: ignore[union-attr]
        count(puts=1, written=len(data))
        put, sums = load_obstore().put, sums_of(data).attributes()
        done = request(
            "write",
            str(self),
            lambda: put(self.client, self.key, data, attributes=sums, mode=mode, use_multipart=False),
        )
        return Version(done["e_tag"], done["version"])

    def put_file(self, file: IO[bytes]) -> None:
        """Write the whole contents of a file, open for reading, as the object's content."""
        check_write(self)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        sums = sums_of_file(file.read, size).attributes()
        count(puts=1, written=size)

        def put() -> None:
            file.seek(0)
            load_obstore().put(self.client, self.key, file, attributes=sums, use_multipart=size > _PART_BYTES)

        request("write", str(self), put)

    def copy_to(self, other: "ObjectPath") -> None:
        """Copy the object with its sums to ``other`` in the same bucket, on the service's side."""
        check_write(other)
        count(puts=1)
        request("copy", str(self), lambda: load_obstore().copy(self.client, self.key, other.key, overwrite=True))

    def write_bytes(self, data: Any) -> int:
        """Write the object, as in ``pathlib``."""
        self.put(data)
        return memoryview(data).nbytes

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: the folders of an object exist with it."""

    def rmdir(self) -> None:
        """Do nothing: a folder disappears with the last object in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        check_removal(self)
        count(deletes=1)
        try:
            request("remove", str(self), lambda: load_obstore().delete(self.client, self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_below(self) -> int:
        """Remove every object below and return their total bytes."""
        objects = list(self.below())
        if objects:
            check_removal(objects[0][0])
        delete = load_obstore().delete
        for first in range(0, len(objects), _DELETED_AT_ONCE):
            count(deletes=1)
            keys = [path.key for path, _ in objects[first : first + _DELETED_AT_ONCE]]
            request("remove", str(self), partial(delete, self.client, keys))
        return sum(size for _, size in objects)


def described(answer: Any) -> Described:
    """Return the description of an object in an answer of obstore."""
    meta = answer.meta
    version = Version(meta["e_tag"], meta["version"])
    return Described(meta["size"], meta["last_modified"], version, sums_from(answer.attributes, meta["size"]))


def is_url(text: str) -> bool:
    """Return whether the text is a URL of object storage."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def path_of(text: str) -> Path:
    """Return the local path or the ``ObjectPath`` of a text."""
    if not is_url(text):
        return Path(text)
    split_url(text)  # refuses credentials before they are shown
    path = ObjectPath(text)
    if len(path.parts) < 2 or any(part == ".." for part in path.parts):
        raise UsageError(f"{text!r} has no bucket: give s3://BUCKET/NAME")
    return path


def version_of(path: Path) -> Version | None:
    """Return the version of an object; None for a local file or if the object doesn't exist."""
    try:
        return path.describe().version if isinstance(path, ObjectPath) else None
    except FileNotFoundError:
        return None


def replace_only(path: ObjectPath, data: bytes, version: Version | None) -> Version:
    """Write the object if it has that version (None: if it doesn't exist). Raises ConditionError otherwise.

    An earlier attempt whose answer was lost counts as done, since no two writers write the same ``data``.
    """
    try:
        return path.put(data, only=version)
    except ConditionError:
        with suppress(FileNotFoundError, ResourceError):
            present, there = path.read_version()
            if there == data:
                return present
        raise
