"""Objects that are read in parts: files of the cache that are filled block by block, on demand."""

import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np

from knnstore.errors import CorruptStoreError
from knnstore.files.objects.cache import disk_errors, the_cache
from knnstore.files.protocol import ConditionError
from knnstore.files.remotepath import RemotePath
from knnstore.wording import command

_REQUEST_BYTES = 2**23  # maximum bytes per request
_REQUESTS_AT_ONCE = 16
_TAIL = 4


@lru_cache(maxsize=1)
def _requests() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="objects")


class CachedObject:
    """A chunk of an uncompressed array, cached on disk as far as it was requested: a file as long as the object.

    Its first ``mapped`` bytes are mapped as ``memory``.

    Objects without sums are fetched whole and verified by the checksum at the end of every chunk.

    Raises CorruptStoreError for bytes that aren't what was written, ResourceError if the disk or the service fails, and
    FileNotFoundError if the object doesn't exist.
    """

    def __init__(self, path: RemotePath, mapped: int) -> None:
        self.path = path
        description = path.files.describe(path)
        self.size = description.size
        self._version, self._sums = description.version, description.sums
        self._block = description.sums.block_bytes if description.sums else max(1, description.size)
        self._cache = the_cache()
        self.file = self._open()
        self._good = np.zeros(-(-self.size // self._block), np.bool_)
        self._coming: dict[int, Future[None]] = {}
        self._lock = Lock()
        # copy-on-write, though nobody writes: torch takes no array that is read-only
        self.memory = mmap.mmap(self.file.fileno(), min(mapped, self.size), access=mmap.ACCESS_COPY)

    def require(self, begin: int, end: int) -> None:
        """Make sure that bytes ``[begin, end)`` are in the file and verified."""
        work, waiting = self._claim(begin, end)
        ahead = [_requests().submit(self._bring, *blocks) for blocks in work[1:]]
        if work:
            self._bring(*work[0])
        for future in (*ahead, *waiting):
            future.result()

    def will_need(self, begin: int, end: int) -> None:
        """Fetch bytes ``[begin, end)`` in the background."""
        for blocks in self._claim(begin, end)[0]:
            _requests().submit(self._bring, *blocks)

    def _claim(self, begin: int, end: int) -> tuple[list[tuple[int, int]], list[Future[None]]]:
        """Return the ranges of blocks that the caller must fetch, and futures of those that other threads fetch."""
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
        """Verify cached blocks and fetch missing ones; all of them were claimed before."""
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
            data = self.path.files.get(self.path, begin, end, self._version)
        except ConditionError as error:
            raise CorruptStoreError(
                f"{self.path} was replaced while it was read: run the same command again"
            ) from error
        for block in range(first, last):
            at = block * self._block - begin
            if not self._matches(block, data[at : at + self._block]):
                raise CorruptStoreError(
                    f"{self.path} is damaged in bytes {begin + at} to {min(begin + at + self._block, self.size)}: "
                    f"build the index again with {command('index', overwrite=True)}"
                )
        with disk_errors(self._cache):
            os.pwrite(self.file.fileno(), data, begin)

    def _is_here(self, block: int) -> bool:
        begin = block * self._block
        length = min(self._block, self.size - begin)
        with suppress(OSError):  # holes needn't be read
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
            with disk_errors(self._cache):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
                fcntl.flock(file, fcntl.LOCK_SH)
                status = os.fstat(file.fileno())
                if status.st_nlink:
                    if status.st_size != self.size:
                        os.ftruncate(file.fileno(), self.size)
                    os.utime(file.fileno())
                    return file
                file.close()  # another process has just removed it to make room
