"""Files on a disk or in object storage, by the same verbs.

``Files`` (protocol.py) names the verbs; ``LocalFiles`` and ``RemoteFiles`` implement them, and ``files_of`` chooses by
the path. Another kind of storage derives from ``RemoteFiles`` and is made known by ``register``.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from knnstore.errors import CorruptStoreError, ResourceError
from knnstore.files.failures import explained, storage_errors
from knnstore.files.local import LEFTOVERS, TEMPORARY_SUFFIX, LocalFiles
from knnstore.files.protocol import ConditionError, Description, Entry, Files, Mapped, Version, WriteLock
from knnstore.files.remote import RemoteFiles, at_once
from knnstore.files.remotepath import RemotePath, is_url, path_of, register, schemes
from knnstore.files.sealed import CHECKSUM_FIELD, encode_json, seal_json, unseal_json
from knnstore.wording import command

__all__ = [
    "CHECKSUM_FIELD",
    "LEFTOVERS",
    "TEMPORARY_SUFFIX",
    "ConditionError",
    "Description",
    "Entry",
    "Files",
    "Mapped",
    "RemoteFiles",
    "RemotePath",
    "Version",
    "WriteLock",
    "at_once",
    "encode_json",
    "explained",
    "files_of",
    "flush",
    "free_bytes",
    "is_url",
    "load_json",
    "make_folder",
    "open_regular",
    "path_of",
    "read_raw",
    "register",
    "remove_folder",
    "replacing",
    "replacing_path",
    "replacing_together",
    "schemes",
    "seal_json",
    "storage_errors",
    "unseal_json",
    "version_of",
    "write_atomically",
    "write_json",
]

_LARGEST_JSON = 2**24
_LOCAL = LocalFiles()


def files_of(path: Path) -> Files:
    """Return the verbs of the place where a path is."""
    return path.files if isinstance(path, RemotePath) else _LOCAL


def open_regular(path: Path) -> BinaryIO:
    """See ``Files.open``."""
    return files_of(path).open(path)


def read_raw(path: Path, begin: int = 0, end: int | None = None) -> bytes:
    """See ``Files.read``."""
    return files_of(path).read(path, begin, end)


def version_of(path: Path) -> Version | None:
    """See ``Files.version_of``."""
    return files_of(path).version_of(path)


def write_atomically(path: Path, data: bytes) -> None:
    """See ``Files.write``."""
    files_of(path).write(path, data)


def load_json(path: Path) -> object:
    """Return the JSON value in a metadata file of bounded size, its checksum verified and removed.

    Raises CorruptStoreError if it isn't a file, too large, not JSON, or not what was written.
    """
    try:
        with open_regular(path) as file:
            data = file.read(_LARGEST_JSON + 1)
        if len(data) > _LARGEST_JSON:
            raise CorruptStoreError(f"{path} is larger than {_LARGEST_JSON} bytes, which no metadata is")
        return unseal_json(data)
    except ResourceError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise CorruptStoreError(
            f"{path} is damaged, or isn't JSON: {error}. See what else is with {command('verify')}"
        ) from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace ``path`` by canonical JSON of ``value`` with its checksum, see ``Files.write``."""
    write_atomically(path, seal_json(value))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path``, complete and durable, when the context ends without error."""
    with storage_errors("write", path), replacing_path(path) as aside, aside.open("wb") as file:
        yield file


def replacing_path(path: Path) -> AbstractContextManager[Path]:
    """See ``Files.replacing_path``."""
    return files_of(path).replacing_path(path)


def replacing_together(paths: Sequence[Path]) -> AbstractContextManager[list[BinaryIO]]:
    """See ``Files.replacing_together``. The paths are in one place."""
    return files_of(paths[0]).replacing_together(paths)


def make_folder(path: Path) -> None:
    """See ``Files.make_folder``."""
    files_of(path).make_folder(path)


def flush(*paths: Path) -> None:
    """See ``Files.flush``. The paths are in one place."""
    if paths:
        files_of(paths[0]).flush(paths)


def remove_folder(path: Path) -> None:
    """See ``Files.remove_below``."""
    files_of(path).remove_below(path)


def free_bytes(path: Path) -> int:
    """See ``Files.free_bytes``."""
    return files_of(path).free_bytes(path)
