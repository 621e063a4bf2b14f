"""Uncompressed Zarr arrays as memory maps: a chunk file is the raw rows and four bytes of CRC-32C.

Mapped pages belong to the operating system, which may drop them; so a store larger than the memory can be
searched. A chunk's checksum is verified when the process first touches it, by plain reads, so that verifying
doesn't make a whole chunk resident. Of a store in object storage a file of the local cache is mapped, and blocks of it
are fetched and verified before they are first touched.
"""

import mmap
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import IO, Any

import google_crc32c
import numpy as np

from knnstore.atomic import open_regular, storage_errors
from knnstore.datastore.arrays import CHECKSUM_BYTES, chunk_file, open_raw
from knnstore.errors import CorruptStoreError
from knnstore.objects.cache import CachedObject, the_cache
from knnstore.objects.path import ObjectPath

# Together the maps of one array stay below this; older ones are let go of (Python's mmap also holds a descriptor each).
MAPPED_BYTES = 2**27
_BLOCK = 2**22
_MEND = "build the index again with 'knnstore index --overwrite'"
_Map = tuple[mmap.mmap, CachedObject | None]


class MappedArray:
    """Rows of an uncompressed array at ``path``: ``shape`` (rows, …), ``dtype``; read-only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        form = open_raw(path)
        self.shape, self.dtype = form.shape, form.dtype
        self._chunk_rows, self._row_bytes, self._chunk_bytes = form.chunk_rows, form.row_bytes, form.chunk_bytes
        self._kept = max(2, min(64, MAPPED_BYTES // max(1, self._chunk_bytes)))
        self._maps: OrderedDict[int, _Map] = OrderedDict()
        # what a process has mapped stays in the cache
        self._most = max(2, the_cache().limit // 16 // self._chunk_bytes) if isinstance(path, ObjectPath) else None
        self._verified: set[int] = set()
        self._lock = Lock()

    def rows(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Rows ``[begin, end)``: a view of the map where they lie in one chunk, else a copy.

        Raises CorruptStoreError if a chunk is missing, of a wrong size, or fails its checksum.
        """
        if not 0 <= begin <= end <= self.shape[0]:
            raise IndexError(f"{self.path}: rows [{begin}, {end}) of {self.shape[0]}")
        if begin == end:
            return np.empty((0, *self.shape[1:]), self.dtype)
        pieces = [self._view(*piece) for piece in self._pieces(begin, end)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def take(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Copies of the given rows, int64 ``(n,)`` in any order: ``(n, …)``."""
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)
        chunks = rows // self._chunk_rows
        for chunk in np.unique(chunks):
            here = np.flatnonzero(chunks == chunk)
            first = int(chunk) * self._chunk_rows
            last = min(first + self._chunk_rows, self.shape[0])
            result[here] = self._view(int(chunk), 0, last - first)[rows[here] - first]
        return result

    def keep_maps(self, count: int) -> None:
        """Let go of a map only when ``count`` newer ones are held: for reads here and there rather than a scan."""
        self._kept = max(self._kept, count if self._most is None else min(count, self._most))

    def release(self) -> None:
        """Let go of all maps, so that the operating system may drop their pages; they come back when they are read."""
        with self._lock:
            self._maps.clear()

    def will_need(self, begin: int, end: int) -> None:
        """Ask the kernel to read rows ``[begin, end)`` ahead."""
        for chunk, first, last in self._pieces(begin, end):
            mapped, cached = self._map(chunk)
            if cached is not None:
                cached.will_need(first * self._row_bytes, last * self._row_bytes)
                continue
            start = first * self._row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, start, last * self._row_bytes - start)

    def _pieces(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        size = self._chunk_rows
        return [
            (chunk, max(begin - chunk * size, 0), min(end - chunk * size, size))
            for chunk in range(begin // size, (end - 1) // size + 1)
        ]

    def _view(self, chunk: int, first: int, last: int) -> np.ndarray[Any, Any]:
        count = (last - first) * (self._row_bytes // self.dtype.itemsize)
        mapped, cached = self._map(chunk)
        if cached is not None:
            cached.require(first * self._row_bytes, last * self._row_bytes)
        flat = np.frombuffer(mapped, self.dtype, count, first * self._row_bytes)
        return flat.reshape(last - first, *self.shape[1:])

    def _map(self, chunk: int) -> _Map:
        with self._lock:
            return self._map_alone(chunk)

    def _map_alone(self, chunk: int) -> _Map:
        if chunk in self._maps:
            self._maps.move_to_end(chunk)
            return self._maps[chunk]
        file = chunk_file(self.path, chunk, len(self.shape))
        if isinstance(file, ObjectPath):
            self._maps[chunk] = self._map_cached(file, chunk)
        else:
            if chunk not in self._verified:
                self._verify(file, chunk)
                self._verified.add(chunk)
            with storage_errors("map", file), open_regular(file) as handle:
                self._maps[chunk] = self._mmap(handle), None
        while len(self._maps) > self._kept:
            self._maps.popitem(last=False)
        return self._maps[chunk]

    def _mmap(self, file: IO[bytes]) -> mmap.mmap:
        # copy-on-write, though nobody writes: torch takes no array that is read-only
        return mmap.mmap(file.fileno(), self._chunk_bytes, access=mmap.ACCESS_COPY)

    def _map_cached(self, file: ObjectPath, chunk: int) -> _Map:
        where, wanted = self._where(file, chunk), self._chunk_bytes + CHECKSUM_BYTES
        try:
            cached = CachedObject(file)
        except FileNotFoundError:
            raise CorruptStoreError(f"{where} is missing: {_MEND}") from None
        if cached.size != wanted:
            raise CorruptStoreError(f"{where} has {cached.size} bytes, not {wanted}: {_MEND}")
        return self._mmap(cached.file), cached

    def _where(self, file: Path, chunk: int) -> str:
        first = chunk * self._chunk_rows
        return f"{file} (rows {first} to {min(first + self._chunk_rows, self.shape[0])})"

    def _verify(self, file: Path, chunk: int) -> None:
        where = self._where(file, chunk)
        size = file.stat().st_size if file.is_file() else -1
        if size != self._chunk_bytes + CHECKSUM_BYTES:
            found = "is missing" if size < 0 else f"has {size} bytes, not {self._chunk_bytes + CHECKSUM_BYTES}"
            raise CorruptStoreError(f"{where} {found}: {_MEND}")
        checksum, left = 0, self._chunk_bytes
        with storage_errors("read", file), open_regular(file) as handle:
            while left and (block := handle.read(min(_BLOCK, left))):
                checksum = google_crc32c.extend(checksum, block)
                left -= len(block)
            expected = int.from_bytes(handle.read(CHECKSUM_BYTES), "little")
        if checksum != expected:
            raise CorruptStoreError(f"{where} is damaged (CRC-32C {checksum:08x}, recorded {expected:08x}): {_MEND}")
