"""Files on a disk: durable writes (to a temporary file, fsync, rename), locks of the system, and memory maps."""

import errno
import fcntl
import json
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from knnstore.errors import CorruptStoreError, LockedError
from knnstore.files.failures import disk_free, explained, storage_errors
from knnstore.files.protocol import ConditionError, Description, Entry, Files, Say, Version

_SYNCED_AT_ONCE = 8
TEMPORARY_SUFFIX = ".tmp"
LEFTOVERS = (TEMPORARY_SUFFIX, ".partial")
"""Endings of what a killed writer leaves half-written: our files set aside, and Zarr's."""
# For one call of madvise, Linux reads at most what the disk takes in one request.
ASKED_AT_ONCE = 2**19


class LocalFiles(Files):
    """The verbs for paths of the operating system."""

    def open(self, path: Path) -> BinaryIO:
        """See Files. Raises ResourceError for a file that this user may not read, which isn't damaged."""
        try:
            file = open(path, "rb", opener=_open_plainly)  # noqa: SIM115 - the caller closes it
        except PermissionError as error:
            raise explained(error, "read", path) from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file

    def read(self, path: Path, begin: int = 0, end: int | None = None) -> bytes:
        """See Files."""
        with storage_errors("read", path), self.open(path) as file:
            file.seek(begin)
            return file.read(-1 if end is None else end - begin)

    def load(self, path: Path) -> memoryview:
        """See Files."""
        with storage_errors("map", path), self.open(path) as file:
            size = os.fstat(file.fileno()).st_size
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")

    def map(self, path: Path, size: int) -> "LocalMap":
        """See Files."""
        with storage_errors("map", path), self.open(path) as file:
            # copy-on-write, though nobody writes: torch takes no array that is read-only
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
            return LocalMap(os.fstat(file.fileno()).st_size, memory)

    def describe(self, path: Path) -> Description:
        """See Files. Inode, size and time of writing tell versions apart, as each write makes a new file."""
        status = path.stat(follow_symlinks=False)
        version = Version(f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}", None)
        return Description(status.st_size, status.st_mtime, version)

    def entries(self, path: Path) -> Iterator[Entry]:
        """See Files. Links aren't followed."""
        for entry in _below(path):
            if kind := _kind(entry):
                yield Entry(Path(entry.path), 0, kind)
                continue
            with suppress(FileNotFoundError):
                yield Entry(Path(entry.path), entry.stat(follow_symlinks=False).st_size)

    def folders(self, path: Path) -> list[str]:
        """See Files."""
        return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []

    def write(self, path: Path, data: bytes, only: Version | bool | None = False) -> Version:
        """See Files. The caller's lock keeps other writers away between the look at the version and the write."""
        if only is not False and self.version_of(path) != only:
            raise ConditionError(str(path))
        with storage_errors("write", path), self.replacing_path(path) as aside, aside.open("wb") as file:
            file.write(data)
        return self.describe(path).version

    def read_version(self, path: Path) -> tuple[Version, bytes]:
        """See Files."""
        return self.describe(path).version, self.read(path)

    @contextmanager
    def replacing_together(self, paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
        """See Files. The files are flushed concurrently."""
        asides = [_aside(path) for path in paths]
        with storage_errors("write", paths[0].parent):
            try:
                with ExitStack() as stack:
                    yield [stack.enter_context(aside.open("wb")) for aside in asides]
                self.flush(asides)
                for aside, path in zip(asides, paths, strict=True):
                    aside.replace(path)
            except BaseException:
                for aside in asides:
                    aside.unlink(missing_ok=True)
                raise

    @contextmanager
    def replacing_path(self, path: Path) -> Iterator[Path]:
        """See Files.

        The temporary name is unique, because two processes may write the same file: the second copy of a task that
        seemed lost. (Process ids aren't enough: containers and machines that share a disk may have equal ones.)
        """
        aside = _aside(path)
        try:
            yield aside
            _sync(aside)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def copy(self, source: Path, target: Path) -> None:
        """See Files."""
        with self.replacing_path(target) as aside:
            shutil.copyfile(source, aside, follow_symlinks=False)

    def remove_below(self, path: Path, first: str = "") -> int:
        """See Files."""
        if not path.exists():
            return 0
        size = sum(entry.bytes for entry in self.entries(path))
        with storage_errors("remove", path):
            for file in list(path.rglob(first)) if first else ():
                file.unlink(missing_ok=True)
                _sync(file.parent)
            shutil.rmtree(path)
            _sync(path.parent)
        return size

    @contextmanager
    def lock(self, path: Path, holder: dict[str, Any], say: Say) -> Iterator["LocalLock"]:
        """See Files: an advisory lock that the system releases when its holder dies."""
        with storage_errors("lock", path):
            file = path.open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(
                    f"{path.parent} is being written by {_recorded(path)}: wait for it, or stop it"
                ) from None
            file.truncate(0)
            json.dump(holder, file)
            file.flush()
            os.fsync(file.fileno())  # on a network file system, other machines look for it
            # The file stays: unlinking a locked file would let two writers hold two files of the same name.
            try:
                yield LocalLock()
            finally:
                file.truncate(0)

    def holder(self, path: Path) -> str | None:
        """See Files."""
        try:
            if not path.stat().st_size:  # the usual case needs no probe that could meet a writer who is just starting
                return None
            with path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _recorded(path)
        except OSError:  # no lock file, or one that may not be read: nobody that we know of
            return None
        return None

    def token(self, path: Path) -> str:
        """See Files."""
        try:
            return path.read_text(encoding="utf-8")
        except OSError:
            return ""

    def hold(self, path: Path) -> IO[bytes] | None:
        """See Files."""
        try:
            file = path.open("rb")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH)  # a writer that looks whether anybody reads has it for an instant only
        except OSError:
            file.close()
            return None
        return file

    def is_held(self, path: Path) -> bool:
        """See Files."""
        try:
            file = path.open("rb")
        except OSError:
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return False
        return False

    def make_folder(self, path: Path) -> None:
        """See Files."""
        with storage_errors("make", path):
            missing = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            for folder in reversed(missing):
                _sync(folder.absolute().parent)

    def flush(self, paths: Iterable[Path]) -> None:
        """See Files. All concurrently, so that the device's journal is written once for many of them."""
        with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
            list(pool.map(_sync, paths))

    def require_plain(self, root: Path) -> None:
        """See Files.

        A store may come from a stranger: a link in it would have files outside of it read, or written to, and a FIFO
        would be waited for. One pass over the folders' entries, which neither opens nor measures the files.
        """
        for entry in _below(root):
            if kind := _kind(entry):
                raise CorruptStoreError(
                    f"{entry.path} is {kind}: a store holds plain files alone, so that nothing outside of it is "
                    "touched; put the file itself there, or move the whole store"
                )

    def remove_leftovers(self, root: Path) -> None:
        """See Files. The caller holds the lock."""
        with storage_errors("clean", root):
            for path in [path for path in map(Path, _below(root)) if path.suffix in LEFTOVERS]:
                path.unlink(missing_ok=True)
                _sync(path.parent)

    def free_bytes(self, path: Path) -> int:
        """See Files."""
        return disk_free(path)


@dataclass(frozen=True, slots=True, eq=False)
class LocalMap:
    """See ``protocol.Mapped``."""

    size: int
    memory: mmap.mmap

    def require(self, begin: int, end: int) -> None:
        """Do nothing: the system reads a page when it is touched."""

    def will_need(self, begin: int, end: int) -> None:
        """Ask the system to read bytes ``[begin, end)`` ahead."""
        for at in range(begin // mmap.PAGESIZE * mmap.PAGESIZE, end, ASKED_AT_ONCE):
            self.memory.madvise(mmap.MADV_WILLNEED, at, min(ASKED_AT_ONCE, end - at))


class LocalLock:
    """See ``protocol.WriteLock``. Nobody can take it over."""

    epoch = 0
    taken_over = False

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch of this writer, which is that of the store."""
        self.epoch = epoch

    def require(self) -> None:
        """Do nothing."""


def _below(path: Path) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder but folders, in a fixed order; links aren't followed."""
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        names: list[os.DirEntry[str]] = []
        # a writer may remove a folder after its parent was read
        with storage_errors("read", folder), suppress(FileNotFoundError), os.scandir(folder) as entries:
            names = sorted(entries, key=lambda entry: entry.name)
        for entry in names:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            else:
                yield entry


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Describe what isn't a regular file; None for one."""
    if entry.is_file(follow_symlinks=False):
        return None
    return "a link" if entry.is_symlink() else "neither a file nor a folder"


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_plainly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def _recorded(path: Path) -> str:
    """Describe the holder that a lock records."""
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, OSError):
        return "another process"
