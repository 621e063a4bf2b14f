"""A folder of this machine that holds what was read from object storage, up to a limit.

A file of it is named after an object's URL and its version, and is as long as the object; blocks that weren't fetched
are holes. A block is there if its bytes have its checksum, which travels with the object: no record of what is there is
kept, so none can be wrong after a crash, and processes share the folder without talking to each other. Whoever has a
file open holds a shared ``flock`` on it, and only files that nobody holds make room for others.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np

from knnstore.errors import CorruptStoreError, ResourceError, UsageError
from knnstore.objects.path import Described, ObjectPath, Version, described
from knnstore.objects.service import ConditionError, UnchangedError, count, load_obstore, request
from knnstore.objects.sums import Sums, block_bytes
from knnstore.sizes import format_size, parse_size

LIMIT_VARIABLE = "KNNSTORE_STORE_CACHE"
FOLDER_VARIABLE = "KNNSTORE_STORE_CACHE_FOLDER"
DEFAULT_LIMIT = "50GB"
SMALLEST_LIMIT = 64 * 10**6
_KEPT_SHARE = 0.8  # of the limit, once it was reached
_REQUEST_BYTES = 2**23  # most that one request asks for
_REQUESTS_AT_ONCE = 16
_SMALL = 2**16  # objects below this are asked for again rather than kept
_TAIL = 4


class Cache:
    """The files in ``folder``, which take ``limit`` bytes of the disk."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._lock = Lock()
        self._room = 0  # bytes that may come before the folder has to be looked through again

    def file(self, path: ObjectPath, version: Version) -> Path:
        """The file of a version of an object."""
        told = json.dumps([str(path), version.e_tag, version.version])
        name = sha256(told.encode()).hexdigest()[:32]
        return self.folder / name[:2] / name

    def note(self, path: ObjectPath) -> Path:
        """The file that says which version of a whole object is here."""
        name = sha256(str(path).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.json"

    def make_room(self, size: int) -> None:
        """Remove the files that were opened longest ago, but for those that are held, if ``size`` more are too many."""
        with self._lock:
            self._room -= size
            if self._room >= 0:
                return
            files = self._files()
            used = sum(found.st_blocks * 512 for _, found in files)
            if used + size > self.limit:
                for file, found in sorted(files, key=lambda entry: entry[1].st_mtime):
                    if used + size <= _KEPT_SHARE * self.limit:
                        break
                    if _removed(file):
                        used -= found.st_blocks * 512
            # others fill the folder as well: look again before long
            self._room = max(0, self.limit - used - size) // 8

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for file in self.folder.glob("??/*"):
            with suppress(OSError):
                found.append((file, file.stat()))
        return found


def _removed(file: Path) -> bool:
    try:
        with file.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
    except OSError:
        return False
    return True


@lru_cache(maxsize=8)
def _cache(folder: str, limit: int) -> Cache:
    return Cache(Path(folder), limit)


def the_cache() -> Cache:
    """The cache that the environment asks for. Raises UsageError for a limit that is none, or too small."""
    text = os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT
    limit = parse_size(text)
    if limit < SMALLEST_LIMIT:
        least = format_size(SMALLEST_LIMIT)
        raise UsageError(f"a cache of {text} can't hold what a search has open: give --store-cache at least {least}")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return _cache(os.environ.get(FOLDER_VARIABLE) or str(Path(home) / "knnstore" / "objects"), limit)


@lru_cache(maxsize=1)
def _requests() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="objects")


class CachedObject:
    """A chunk of an uncompressed array, on this disk as far as it was asked for. ``file`` is as long as the object.

    Objects without sums are fetched whole, and verified by the checksum that every chunk ends in.

    Raises CorruptStoreError for bytes that aren't what was written, ResourceError if the disk or the service fails,
    FileNotFoundError if there is no such object.
    """

    def __init__(self, path: ObjectPath) -> None:
        self.path = path
        found = path.describe()
        self.size = found.size
        self._version, self._sums = found.version, found.sums
        self._block = found.sums.block_bytes if found.sums else max(1, found.size)
        self._cache = the_cache()
        self.file = self._open()
        self._good = np.zeros(-(-self.size // self._block), np.bool_)
        self._coming: dict[int, Future[None]] = {}
        self._lock = Lock()

    def require(self, begin: int, end: int) -> None:
        """See that bytes ``[begin, end)`` are in the file, verified."""
        work, waiting = self._claim(begin, end)
        ahead = [_requests().submit(self._bring, *blocks) for blocks in work[1:]]
        if work:
            self._bring(*work[0])
        for future in (*ahead, *waiting):
            future.result()

    def will_need(self, begin: int, end: int) -> None:
        """Fetch bytes ``[begin, end)`` meanwhile."""
        for blocks in self._claim(begin, end)[0]:
            _requests().submit(self._bring, *blocks)

    def _claim(self, begin: int, end: int) -> tuple[list[tuple[int, int]], list[Future[None]]]:
        """Ranges of blocks that are left for the caller to bring, and those that another thread brings already."""
        first, last = begin // self._block, -(-end // self._block)
        with self._lock:
            if self._good[first:last].all():
                return [], []
            waiting = {id(f): f for block in range(first, last) if (f := self._coming.get(block))}
            left = [block for block in range(first, last) if not self._good[block] and block not in self._coming]
            work: list[tuple[int, int]] = []
            most = max(1, _REQUEST_BYTES // self._block)
            for block in left:
                if work and work[-1][1] == block and block - work[-1][0] < most:
                    work[-1] = (work[-1][0], block + 1)
                else:
                    work.append((block, block + 1))
            for blocks in work:
                future: Future[None] = Future()
                for block in range(*blocks):
                    self._coming[block] = future
        return work, list(waiting.values())

    def _bring(self, first: int, last: int) -> None:
        """Verify blocks that are there, and fetch the others; they were claimed before."""
        future = self._coming[first]
        try:
            missing = [block for block in range(first, last) if not self._is_here(block)]
            if missing:
                self._fetch(missing[0], missing[-1] + 1)
        except BaseException as error:
            self._end(first, last, good=False)
            future.set_exception(error)
            raise
        self._end(first, last, good=True)
        future.set_result(None)

    def _end(self, first: int, last: int, *, good: bool) -> None:
        with self._lock:
            self._good[first:last] = good
            for block in range(first, last):
                del self._coming[block]

    def _fetch(self, first: int, last: int) -> None:
        begin, end = first * self._block, min(last * self._block, self.size)
        self._cache.make_room(end - begin)
        try:
            data = self.path.read_range(begin, end, self._version)
        except ConditionError as error:
            raise CorruptStoreError(
                f"{self.path} was replaced while it was read: run the same command again"
            ) from error
        for block in range(first, last):
            at = block * self._block - begin
            if not self._matches(block, data[at : at + self._block]):
                raise CorruptStoreError(
                    f"{self.path} is damaged in bytes {begin + at} to {min(begin + at + self._block, self.size)}: "
                    "build the index again with 'knnstore index --overwrite'"
                )
        try:
            os.pwrite(self.file.fileno(), data, begin)
        except OSError as error:
            raise ResourceError(
                f"can't write to the cache {self._cache.folder}: {error.strerror}; give it another place with "
                f"${FOLDER_VARIABLE}, or a smaller --store-cache"
            ) from error

    def _is_here(self, block: int) -> bool:
        begin = block * self._block
        length = min(self._block, self.size - begin)
        with suppress(OSError):  # a hole needs no reading
            if os.lseek(self.file.fileno(), begin, os.SEEK_DATA) >= begin + length:
                return False
        data = os.pread(self.file.fileno(), length, begin)
        return len(data) == length and self._matches(block, data)

    def _matches(self, block: int, data: bytes) -> bool:
        if self._sums is not None:
            return int(google_crc32c.value(data)) == int(self._sums.blocks[block])
        return int(google_crc32c.value(data[:-_TAIL])).to_bytes(4, "little") == data[-_TAIL:]

    def _open(self) -> Any:
        path = self._cache.file(self.path, self._version)
        while True:
            with _disk_errors(self._cache):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
                fcntl.flock(file, fcntl.LOCK_SH)
                found = os.fstat(file.fileno())
                if found.st_nlink:
                    if found.st_size != self.size:
                        os.ftruncate(file.fileno(), self.size)
                    os.utime(file.fileno())
                    return file
                file.close()  # it was making room for another at this very moment


_afresh: list[bool] = []


@contextmanager
def read_afresh() -> Iterator[None]:
    """Within, whole objects come from the service as they are: for who looks for damage."""
    _afresh.append(True)
    try:
        yield
    finally:
        _afresh.pop()


def read_object(path: ObjectPath) -> bytes:
    """A whole object, from the cache if the service says that it is the one that is there.

    Raises FileNotFoundError if it isn't there, CorruptStoreError if what arrives isn't what was written.
    """
    cache = the_cache()
    known = None if _afresh else _known(cache, path)
    options = {"if_none_match": known[0].e_tag} if known else {}

    def get() -> tuple[Described, bytes]:
        count(gets=1)
        answer = load_obstore().get(path.client, path.key, options=options)
        return described(answer), bytes(answer.bytes())

    try:
        found, data = request("read", str(path), get)
    except UnchangedError:
        assert known is not None
        return known[1]
    count(read=len(data))
    if found.sums is None or _afresh:
        return data  # there is nothing to verify a copy by, or the caller does
    if not found.sums.fits(data):
        raise CorruptStoreError(f"{path} isn't what was written: see what else is, with 'knnstore verify'")
    if len(data) >= _SMALL and found.version.e_tag:
        _keep(cache, path, found, data)
    return data


def _known(cache: Cache, path: ObjectPath) -> tuple[Version, bytes] | None:
    """The version of a whole object that is here, and its bytes, verified."""
    try:
        told = json.loads(cache.note(path).read_text())
        version, blocks = Version(told["e_tag"], told["version"]), np.array(told["blocks"], np.uint32)
        file = cache.file(path, version)
        data = file.read_bytes()
        sums = Sums(len(data), 0, 0, blocks)
        if len(blocks) == -(-len(data) // block_bytes(len(data))) and sums.fits(data):
            os.utime(file)
            return version, data
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        pass
    return None


def _keep(cache: Cache, path: ObjectPath, found: Described, data: bytes) -> None:
    assert found.sums is not None
    cache.make_room(len(data))
    with suppress(OSError):  # a disk that is full doesn't keep anyone from reading
        version = found.version
        _put_aside(cache.file(path, version), data)
        told = {"e_tag": version.e_tag, "version": version.version, "blocks": found.sums.blocks.tolist()}
        _put_aside(cache.note(path), json.dumps(told).encode())


def _put_aside(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix="new-", delete=False) as aside:
        try:
            aside.write(data)
            aside.flush()
            Path(aside.name).replace(file)
        except BaseException:
            Path(aside.name).unlink(missing_ok=True)
            raise


@contextmanager
def _disk_errors(cache: Cache) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"can't use the cache {cache.folder}: {error.strerror or error}; give it another place with "
            f"${FOLDER_VARIABLE}, or a smaller --store-cache"
        ) from error
