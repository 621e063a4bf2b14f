"""Durable writes: aside, fsync, rename; JSON that carries its own checksum; foreign OS errors as sentences of ours.

All of it works on object storage as well, where a file is written by one request: whole and durable, or not at all.
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
    """CRC-32C of the next ``length`` bytes of an open file (None: all)."""
    checksum, left = 0, sys.maxsize if length is None else length
    while block := file.read(min(_BLOCK, left)):
        checksum = google_crc32c.extend(checksum, block)
        left -= len(block)
        advance(len(block))
    return int(checksum)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; OSError for anything else. Links aren't followed, a FIFO isn't waited for.

    Raises ResourceError for a file that this user may not read: nothing is wrong with it.
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
    """Flush a file's bytes to the device."""
    if isinstance(path, ObjectPath):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# A folder is synced the same way: what reaches the device then is its list of names.
sync_folder = sync_file


def sync_all(paths: Iterable[Path]) -> None:
    """Flush files, or folders, to the device at the same time: its journal is then written once for many of them."""
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
        list(pool.map(sync_file, paths))


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader, or a crash, sees the old file or the new one, never a mixture."""
    if isinstance(path, ObjectPath):
        path.put(data)
        return
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path``, whole and flushed to the device, when the context ends well.

    It is set aside under a name of its own, since two processes may write the same: the second copy of a task that
    seemed lost. (Process ids won't do: containers and machines that share a disk have them in common.)
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
    """``replacing`` for the files of one task, which its commit follows.

    They are flushed at the same time; that their names reach the device is left to the commit.
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
    """``replacing`` for who opens the file by its name."""
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
    """JSON in one canonical form: sorted keys, one space of indent, a line break at the end."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def seal_json(value: dict[str, Any]) -> bytes:
    """Canonical JSON of ``value`` with one field more, ``crc32c``: the CRC-32C of the canonical JSON without it."""
    return encode_json(value | {CHECKSUM_FIELD: google_crc32c.value(encode_json(value))})


def unseal_json(data: bytes) -> Any:
    """The JSON value in ``data``, without its checksum; ValueError if that doesn't match, or a byte isn't canonical.

    A value without a checksum is taken as it is: people write JSON by hand, and old stores have none.
    """
    value = json.loads(data, parse_constant=_refuse_constant)
    if not isinstance(value, dict) or CHECKSUM_FIELD not in value:
        return value
    plain = {name: item for name, item in value.items() if name != CHECKSUM_FIELD}
    if seal_json(plain) != data:
        raise ValueError("its bytes are not those that its checksum was made of")
    return plain


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace ``path`` atomically by ``value`` in canonical JSON with its checksum."""
    write_atomically(path, seal_json(value))


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that aren't there, so that a power cut doesn't take them away again."""
    if isinstance(path, ObjectPath):
        return
    with storage_errors("make", path):
        missing = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            sync_folder(folder.absolute().parent)


def read_raw(path: Path, begin: int = 0, end: int | None = None) -> bytes:
    """Bytes ``[begin, end)`` of a file (None: up to its end), or as many of them as it has."""
    with storage_errors("read", path):
        if isinstance(path, ObjectPath):
            return path.read_bytes()[begin:] if end is None else path.read_range(begin, end)
        with open_regular(path) as file:
            file.seek(begin)
            return file.read(-1 if end is None else end - begin)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, for good."""
    if isinstance(path, ObjectPath):
        path.remove_below()
    elif path.exists():
        with storage_errors("remove", path):
            shutil.rmtree(path)
            sync_folder(path.parent)


@contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError within into a ResourceError that names the path, the cause and the next step."""
    try:
        yield
    except ResourceError:
        raise
    except OSError as error:
        raise explained(error, action, path) from error


def free_bytes(path: Path) -> int:
    """Bytes that the file system of ``path``, or of its nearest existing parent, has free."""
    if isinstance(path, ObjectPath):
        return sys.maxsize
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _has_no_inode(path: Path) -> bool:
    """Whether the file system of a path has room for bytes, and none for another file."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    disk = os.statvfs(existing)
    return disk.f_files > 0 and disk.f_favail == 0 and disk.f_bavail > 0


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON knows")


def explained(error: OSError, action: str, path: Path) -> ResourceError:
    """The error as a sentence that names the path, the cause and the next step."""
    where = error.filename or path
    again = "make room and run the same command again, it goes on"
    if error.errno == errno.ENOSPC and _has_no_inode(path):
        return DiskFullError(
            f"can't {action} {where}: the disk takes no more files (its inodes are used up, its bytes are not): remove "
            "files, however small, and run the same command again, it goes on"
        )
    if error.errno == errno.ENOSPC:
        return DiskFullError(f"no space left to {action} {where} ({format_size(free_bytes(path))} free): {again}")
    if error.errno == errno.EDQUOT:
        free = format_size(free_bytes(path))
        return DiskFullError(f"can't {action} {where}: your quota is used up (the disk has {free} free): {again}")
    if error.errno == errno.EROFS:
        why = "the file system is read-only; choose another place with --store"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why = "permission denied; ask its owner for it, or choose another place"
    elif error.errno == errno.EIO:
        why = f"{error.strerror}; see the system's log for the disk, then run the same command again, it goes on"
    else:
        why = error.strerror or str(error)
    return ResourceError(f"can't {action} {where}: {why}")
