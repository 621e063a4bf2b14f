"""Durable writes (to a temporary file, fsync, rename), JSON with its own checksum, and explained OS errors.

All of this works on object storage too, where one request writes a file: completely and durably, or not at all.
"""

import errno
import io
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from knnstore.errors import DiskFullError, ResourceError
from knnstore.objects.path import ObjectPath
from knnstore.sizes import format_size

_BLOCK = 2**22
_SYNCED_AT_ONCE = 8
TEMPORARY_SUFFIX = ".tmp"
CHECKSUM_FIELD = "crc32c"


def crc32c_of(file: BinaryIO, length: int | None = None, advance: Callable[[int], None] = lambda _: None) -> int:
    """Return the CRC-32C of the next ``length`` bytes of an open file (None: all)."""
    checksum, left = 0, sys.maxsize if length is None else length
    while block := file.read(min(_BLOCK, left)):
        checksum = google_crc32c.extend(checksum, block)
        left -= len(block)
        advance(len(block))
    return int(checksum)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without following links or blocking on a FIFO.

    Raises OSError for anything else, and ResourceError for a file that this user may not read, which isn't damaged.
    """
    if isinstance(path, ObjectPath):
        return io.BytesIO(path.read_bytes())
    try:
        file = open(path, "rb", opener=_open_plainly)  # noqa: SIM115 - the caller closes it
    except PermissionError as error:
        raise explained(error, "read", path) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def _open_plainly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def sync_file(path: Path) -> None:
    """Flush a file to the device."""
    if isinstance(path, ObjectPath):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# A folder is synced the same way, which flushes its list of names.
sync_folder = sync_file


def sync_all(paths: Iterable[Path]) -> None:
    """Flush files or folders to the device concurrently, so that its journal is written once for many of them."""
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
        list(pool.map(sync_file, paths))


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the contents of ``path`` by ``data``; readers, and a crash, see either the old file or the new one."""
    if isinstance(path, ObjectPath):
        path.put(data)
        return
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path``, complete and flushed to the device, when the context ends without error.

    Its temporary name is unique, because two processes may write the same file: the second copy of a task that seemed
    lost. (Process ids aren't enough: containers and machines that share a disk may have equal ones.)
    """
    if isinstance(path, ObjectPath):
        with storage_errors("write", path), tempfile.TemporaryFile() as aside:
            yield aside
            path.put_file(aside)
        return
    with storage_errors("write", path), replacing_path(path) as named, named.open("wb") as file:
        yield file


@contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Open files of one task that replace ``paths``, like ``replacing``, before its commit.

    They are flushed concurrently; the commit flushes their names.
    """
    if any(isinstance(path, ObjectPath) for path in paths):
        with ExitStack() as stack:
            yield [stack.enter_context(replacing(path)) for path in paths]
        return
    asides = [_aside(path) for path in paths]
    with storage_errors("write", paths[0].parent):
        try:
            with ExitStack() as stack:
                yield [stack.enter_context(aside.open("wb")) for aside in asides]
            sync_all(asides)
            for aside, path in zip(asides, paths, strict=True):
                aside.replace(path)
        except BaseException:
            for aside in asides:
                aside.unlink(missing_ok=True)
            raise


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """Yield the name of a file that replaces ``path``, like ``replacing``."""
    if isinstance(path, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="knnstore-") as folder:
            yield Path(folder) / path.name
            with (Path(folder) / path.name).open("rb") as file:
                path.put_file(file)
        return
    aside = _aside(path)
    try:
        yield aside
        sync_file(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def encode_json(value: Any) -> bytes:
    """Return canonical JSON: sorted keys, an indent of one space, a line break at the end."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def seal_json(value: dict[str, Any]) -> bytes:
    """Return canonical JSON of ``value`` with a field ``crc32c``, the CRC-32C of the canonical JSON without it."""
    return encode_json(value | {CHECKSUM_FIELD: google_crc32c.value(encode_json(value))})


def unseal_json(data: bytes) -> Any:
    """Return the JSON value in ``data`` without its checksum. Raises ValueError if the checksum doesn't match.

    A value without a checksum is accepted, because people write JSON by hand and old stores have none.
    """
    value = json.loads(data, parse_constant=_refuse_constant)
    if not isinstance(value, dict) or CHECKSUM_FIELD not in value:
        return value
    plain = {name: item for name, item in value.items() if name != CHECKSUM_FIELD}
    if seal_json(plain) != data:
        raise ValueError("its bytes don't match its checksum")
    return plain


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace ``path`` atomically by canonical JSON of ``value`` with its checksum."""
    write_atomically(path, seal_json(value))


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, durable even after a power cut."""
    if isinstance(path, ObjectPath):
        return
    with storage_errors("make", path):
        missing = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            sync_folder(folder.absolute().parent)


def read_raw(path: Path, begin: int = 0, end: int | None = None) -> bytes:
    """Return bytes ``[begin, end)`` of a file (None: to its end), or as many as it has."""
    with storage_errors("read", path):
        if isinstance(path, ObjectPath):
            return path.read_bytes()[begin:] if end is None else path.read_range(begin, end)
        with open_regular(path) as file:
            file.seek(begin)
            return file.read(-1 if end is None else end - begin)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it exists, durably."""
    if isinstance(path, ObjectPath):
        path.remove_below()
    elif path.exists():
        with storage_errors("remove", path):
            shutil.rmtree(path)
            sync_folder(path.parent)


@contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError raised within into a ResourceError with the path, the cause and the next step."""
    try:
        yield
    except ResourceError:
        raise
    except OSError as error:
        raise explained(error, action, path) from error


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system of ``path`` or of its nearest existing parent."""
    if isinstance(path, ObjectPath):
        return sys.maxsize
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _has_no_inode(path: Path) -> bool:
    """Return whether the file system of a path has free bytes but no free inodes."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    disk = os.statvfs(existing)
    return disk.f_files > 0 and disk.f_favail == 0 and disk.f_bavail > 0


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def explained(error: OSError, action: str, path: Path) -> ResourceError:
    """Return the error with the path, the cause and the next step."""
    where = error.filename or path
    again = "make room and run the same command again to resume"
    if error.errno == errno.ENOSPC and _has_no_inode(path):
        return DiskFullError(
            f"can't {action} {where}: the disk has no free inodes for more files, although it has free bytes: remove "
            "files of any size and run the same command again to resume"
        )
    if error.errno == errno.ENOSPC:
        return DiskFullError(f"no space left to {action} {where} ({format_size(free_bytes(path))} free): {again}")
    if error.errno == errno.EDQUOT:
        free = format_size(free_bytes(path))
        return DiskFullError(f"can't {action} {where}: your quota is exhausted (the disk has {free} free): {again}")
    if error.errno == errno.EROFS:
        why = "the file system is read-only; choose another place with --store"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why = "permission denied; ask the owner for permission or choose another place"
    elif error.errno == errno.EIO:
        why = f"{error.strerror}; check the system log for disk errors, then run the same command again to resume"
    else:
        why = error.strerror or str(error)
    return ResourceError(f"can't {action} {where}: {why}")
