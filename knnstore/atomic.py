"""Durable writes: aside, fsync, rename; and foreign OS errors as sentences of ours."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from knnstore.errors import ResourceError
from knnstore.sizes import format_size

_BLOCK = 2**22
TEMPORARY_SUFFIX = ".tmp"


def crc32c_of(path: Path) -> int:
    """CRC-32C of a file's bytes, read in blocks."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = google_crc32c.extend(checksum, block)
    return int(checksum)


def sync_file(path: Path) -> None:
    """Flush a file's bytes to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# A folder is synced the same way: what reaches the device then is its list of names.
sync_folder = sync_file


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader, or a crash, sees the old file or the new one, never a mixture."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path``, whole and flushed to the device, when the context ends well.

    It is set aside under a name of its own, since two processes may write the same: the second copy of a task that
    seemed lost. (Process ids won't do: containers and machines that share a disk have them in common.)
    """
    with storage_errors("write", path), replacing_path(path) as aside, aside.open("wb") as file:
        yield file


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """``replacing`` for who opens the file by its name."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        yield aside
        sync_file(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def encode_json(value: Any) -> bytes:
    """JSON in one canonical form: sorted keys, one space of indent, a line break at the end."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically by ``value`` in canonical JSON."""
    write_atomically(path, encode_json(value))


@contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError within into a ResourceError that names the path, the cause and the next step."""
    try:
        yield
    except ResourceError:
        raise
    except OSError as error:
        raise ResourceError(_explain(error, action, path)) from error


def free_bytes(path: Path) -> int:
    """Bytes that the file system of ``path``, or of its nearest existing parent, has free."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _explain(error: OSError, action: str, path: Path) -> str:
    where = error.filename or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = format_size(free_bytes(path))
        return f"no space left to {action} {where} ({free} free): make room and run the same command again, it goes on"
    if error.errno == errno.EROFS:
        return f"can't {action} {where}: the file system is read-only; choose another place with --store"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"can't {action} {where}: permission denied; choose another place with --store or mend its permissions"
    return f"can't {action} {where}: {error.strerror or error}"
