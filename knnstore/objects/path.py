"""``ObjectPath``: a path of the standard library that is the URL of an object, or of a folder of objects."""

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
_PART_BYTES = 2**26  # objects up to this are one request, which leaves nothing behind if it is cut short
_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Version:
    """One content of an object, as the service tells them apart."""

    e_tag: str | None
    version: str | None

    @property
    def condition(self) -> dict[str, str]:
        """For a conditional request."""
        both = {"e_tag": self.e_tag, "version": self.version}
        return {name: value for name, value in both.items() if value is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """What a service says of an object: its bytes, the time of its writing, its version, and its sums if it has any."""

    size: int
    modified: datetime
    version: Version
    sums: Sums | None


class ObjectPath(PosixPath):
    """``s3://bucket/key`` as a path; ``gs://`` and ``az://`` likewise. All that it knows is in its text.

    What asks or changes the file system in ``pathlib`` is requests here; what would hand the name to the operating
    system raises UsageError. A folder is there as long as an object is below it, so there is nothing to make or remove.

    Raises ResourceError where the service doesn't do what it is asked, after several attempts.
    """

    __slots__ = ()

    def __str__(self) -> str:
        scheme, colon, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest.lstrip('/')}" if colon and scheme in SCHEMES else scheme + colon + rest

    def __fspath__(self) -> NoReturn:
        raise UsageError(
            f"{self} is in object storage, where this can't be done: copy the store to a disk with the service's own "
            "tools ('aws s3 sync', 'gcloud storage rsync', 'azcopy sync'), and give --store that copy"
        )

    @property
    def client(self) -> Any:
        """obstore's client of the bucket."""
        return bucket_of(f"{self.parts[0]}//{self.parts[1]}")

    @property
    def key(self) -> str:
        """The object's name in its bucket."""
        return "/".join(self.parts[2:])

    def absolute(self) -> "ObjectPath":
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> "ObjectPath":
        """Itself: there are no links."""
        return self

    # asking

    def describe(self) -> Described:
        """What the service says of the object. Raises FileNotFoundError if it isn't there."""
        count(heads=1)
        url = str(self)
        found = request("look at", url, lambda: load_obstore().get(self.client, self.key, options={"head": True}))
        return described(found)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and time of writing, of an object or else of a folder."""
        try:
            found = self.describe()
        except FileNotFoundError:
            if not self.is_dir():
                raise
            return os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        seconds = int(found.modified.timestamp())
        return os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, found.size, seconds, seconds, seconds))

    def is_file(self) -> bool:
        """Whether there is such an object."""
        try:
            self.describe()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there is an object below."""
        obstore, prefix = load_obstore(), self.key or None
        count(lists=1)
        first = request("list", str(self), lambda: next(obstore.list(self.client, prefix, chunk_size=1), None))
        return bool(first)

    def exists(self) -> bool:
        """Whether it is an object or has one below."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def iterdir(self) -> Generator["ObjectPath", None, None]:
        """What is in the folder."""
        count(lists=1)
        obstore, prefix = load_obstore(), self.key or None
        listed = request("list", str(self), lambda: obstore.list_with_delimiter(self.client, prefix))
        names = [*listed["common_prefixes"], *(entry["path"] for entry in listed["objects"])]
        yield from (self / str(name).rstrip("/").rpartition("/")[2] for name in sorted(names))

    def glob(self, pattern: str) -> Generator["ObjectPath", None, None]:
        """What matches a pattern of names between slashes."""
        found = [self]
        for part in pattern.split("/"):
            if _MAGIC & set(part):
                found = [entry for folder in found for entry in folder.iterdir() if fnmatchcase(entry.name, part)]
            else:
                found = [entry for folder in found if (entry := folder / part).exists()]
        yield from found

    def rglob(self, pattern: str) -> Generator["ObjectPath", None, None]:
        """All objects below whose names match the pattern."""
        yield from (path for path, _ in self.below() if fnmatchcase(path.name, pattern))

    def below(self) -> Generator[tuple["ObjectPath", int], None, None]:
        """Every object below, with its bytes."""
        obstore, prefix = load_obstore(), self.key or None
        found = request("list", str(self), lambda: obstore.list(self.client, prefix).collect())
        count(lists=1 + len(found) // 1000)
        begin = len(self.key) + 1 if self.key else 0
        yield from ((self / entry["path"][begin:], int(entry["size"])) for entry in found)

    # reading

    def read_bytes(self) -> bytes:
        """The whole object, verified by its sums if it has any. Raises FileNotFoundError if it isn't there."""
        from knnstore.objects.whole import read_object  # noqa: PLC0415 - it stands on this module

        return read_object(self)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def read_range(self, begin: int, end: int, version: Version | None = None) -> bytes:
        """Bytes ``[begin, end)``, of that version alone if one is given (else ConditionError is raised)."""
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
        """The object as it is now, and the version that has these bytes. Raises FileNotFoundError if it isn't there."""
        count(gets=1)

        def get() -> tuple[Version, bytes]:
            answer = load_obstore().get(self.client, self.key)
            return described(answer).version, bytes(answer.bytes())

        version, data = request("read", str(self), get)
        count(read=len(data))
        return version, data

    # writing

    def put(self, data: Any, *, only: Version | bool | None = False) -> Version:
        """Make ``data`` (bytes-like) the object's content. Durable, and seen by everybody, when it returns.

        ``only``: the version that it has to have now, or None if it has to be new; raises ConditionError otherwise.
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
        """Make all of a file, open for reading, the object's content."""
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
        """Make ``other``, in the same bucket, an object of the same bytes and sums, on the service's side."""
        check_write(other)
        count(puts=1)
        request("copy", str(self), lambda: load_obstore().copy(self.client, self.key, other.key, overwrite=True))

    def write_bytes(self, data: Any) -> int:
        """``put``, as pathlib has it."""
        self.put(data)
        return memoryview(data).nbytes

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: an object's folders are there with it."""

    def rmdir(self) -> None:
        """Nothing: a folder goes with the last object in it."""

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
        """Remove every object below; the bytes that they had."""
        found = list(self.below())
        if found:
            check_removal(found[0][0])
        delete = load_obstore().delete
        for first in range(0, len(found), _DELETED_AT_ONCE):
            count(deletes=1)
            keys = [path.key for path, _ in found[first : first + _DELETED_AT_ONCE]]
            request("remove", str(self), partial(delete, self.client, keys))
        return sum(size for _, size in found)


def described(found: Any) -> Described:
    """What an answer of obstore's says of its object."""
    meta = found.meta
    version = Version(meta["e_tag"], meta["version"])
    return Described(meta["size"], meta["last_modified"], version, sums_from(found.attributes, meta["size"]))


def is_url(text: str) -> bool:
    """Whether it names a place in object storage."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def path_of(text: str) -> Path:
    """The path that a text means: of this machine, or a URL's."""
    if not is_url(text):
        return Path(text)
    split_url(text)  # refuses credentials, before they are shown
    path = ObjectPath(text)
    if len(path.parts) < 2 or any(part == ".." for part in path.parts):
        raise UsageError(f"{text!r} names no bucket: give s3://BUCKET/NAME")
    return path


def version_of(path: Path) -> Version | None:
    """The version of an object; None if it isn't there, or for a file of this machine."""
    try:
        return path.describe().version if isinstance(path, ObjectPath) else None
    except FileNotFoundError:
        return None


def replace_only(path: ObjectPath, data: bytes, version: Version | None) -> Version:
    """``put`` if the object is of that version (None: if there is none). Raises ConditionError otherwise.

    An attempt that was made before, and whose answer was lost, counts as done: no two writers write the same ``data``.
    """
    try:
        return path.put(data, only=version)
    except ConditionError:
        with suppress(FileNotFoundError, ResourceError):
            present, there = path.read_version()
            if there == data:
                return present
        raise
