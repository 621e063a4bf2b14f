"""Uncompressed Zarr arrays as memory maps: a chunk file holds the raw rows and four bytes of CRC-32C.

Mapped pages belong to the operating system, which may drop them, so that a store larger than memory can be searched.
No byte is returned unverified. If the array has checksums of its blocks (``block_sums.py``), a block is verified when
the process first touches it; otherwise the whole chunk is verified with plain reads, so that verification doesn't make
all of it resident. Fetched data is verified by the file layer; see ``files.protocol``.
"""

import mmap
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.arrays import CHECKSUM_BYTES, chunk_file, open_raw
from knnstore.datastore.block_sums import BLOCK_BYTES, BlockSums, FindDamaged, first_damaged
from knnstore.errors import CorruptStoreError
from knnstore.files import Mapped, files_of, open_regular, storage_errors
from knnstore.wording import command

# Limit of all maps of an array together; older maps are released (each also holds a file descriptor).
MAPPED_BYTES = 2**27
_BLOCK = 2**22
ReadSums = Callable[[], None]
"""Reads checksums of blocks; may be called from several threads at once."""


def _rebuild() -> str:
    return f"build the index again with {command('index', overwrite=True)}"


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Ranges of rows, split at chunk boundaries, with the position of each piece: int64 (pieces,) each.

    ``ranges``: the range that a piece belongs to; ``chunks``: its chunk; ``starts``: its offset there in bytes;
    ``counts``: its rows; ``addresses``: its address in memory, valid while ``maps``, by chunk, are referenced.
    """

    ranges: Int64
    chunks: Int64
    starts: Int64
    counts: Int64
    addresses: Int64
    maps: Mapping[int, Mapped]


class MappedArray:
    """Rows of an uncompressed array at ``path``: ``shape`` (rows, …), ``dtype``, ``chunk_rows`` and ``chunk_bytes``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        form = open_raw(path)
        self.shape, self.dtype = form.shape, form.dtype
        self.chunk_rows, self._row_bytes, self.chunk_bytes = form.chunk_rows, form.row_bytes, form.chunk_bytes
        self._kept = max(2, min(64, MAPPED_BYTES // max(1, self.chunk_bytes)))
        self._maps: OrderedDict[int, Mapped] = OrderedDict()
        self._files = files_of(path)
        self._most = self._files.most_maps(self.chunk_bytes)
        self._verified: set[int] = set()
        self._sums = BlockSums.of(path, form)
        self._scattered = False
        self._lock = Lock()

    @property
    def fetches(self) -> bool:
        """Return whether rows are fetched, and verified, on first use; see ``files.protocol``."""
        return self._files.fetches

    def rows(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Return rows ``[begin, end)``: a view of the map if they are in one chunk, else a copy.

        Raises CorruptStoreError if a chunk is missing, has the wrong size, or fails its checksum.
        """
        if not 0 <= begin <= end <= self.shape[0]:
            raise IndexError(f"{self.path}: rows [{begin}, {end}) of {self.shape[0]}")
        if begin == end:
            return np.empty((0, *self.shape[1:]), self.dtype)
        pieces = [self._view(*piece) for piece in self._pieces(begin, end)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def take(self, rows: Int64) -> np.ndarray[Any, Any]:
        """Return copies ``(n, …)`` of the given rows, int64 ``(n,)`` in any order."""
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)
        pieces = self.locate(rows, rows + 1)
        self.verify(pieces)
        for chunk, mapped in pieces.maps.items():
            members = np.flatnonzero(pieces.chunks == chunk)
            whole = np.frombuffer(mapped.memory, self.dtype).reshape(self.chunk_rows, *self.shape[1:])
            result[members] = whole[pieces.starts[members] // self._row_bytes]
        return result

    def locate(self, begins: Int64, ends: Int64) -> Pieces:
        """Return the positions in memory of non-empty row ranges ``[begins, ends)``, int64 (n,); not verified yet."""
        if len(begins) and not (begins.min() >= 0 and ends.max() <= self.shape[0]):
            raise IndexError(f"{self.path}: rows [{begins.min()}, {ends.max()}) of {self.shape[0]}")
        size = self.chunk_rows
        chunks, last = begins // size, (ends - 1) // size
        ranges = np.arange(len(begins))
        if (last > chunks).any():
            # repeat each range once per chunk that it touches, and number its chunks from the first one on
            pieces = last - chunks + 1
            ranges = np.repeat(ranges, pieces)
            chunks = chunks[ranges] + np.arange(len(ranges)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
            begins, ends = begins[ranges], ends[ranges]
        firsts = np.maximum(begins - chunks * size, 0)
        counts = np.minimum(ends - chunks * size, size) - firsts
        # by chunk: first whether it is needed, then the address of its map
        addresses = np.zeros(-(-self.shape[0] // size), np.int64)
        addresses[chunks] = 1
        maps = {chunk: self._map(chunk) for chunk in np.flatnonzero(addresses).tolist()}
        for chunk, mapped in maps.items():
            addresses[chunk] = np.frombuffer(mapped.memory, np.uint8).ctypes.data
        starts = firsts * self._row_bytes
        return Pieces(ranges, chunks, starts, counts, addresses[chunks] + starts, maps)

    def verify(self, pieces: Pieces, damaged: FindDamaged = first_damaged) -> None:
        """Verify the unverified blocks of the pieces with ``damaged``. Raises CorruptStoreError if one is damaged."""
        if self.fetches:
            for chunk, start, count in zip(pieces.chunks, pieces.starts, pieces.counts, strict=True):
                pieces.maps[int(chunk)].require(int(start), int(start) + int(count) * self._row_bytes)
        self._verify_blocks(self._unverified(pieces), pieces.maps, damaged)

    def unread_sums(self, pieces: Pieces) -> list[ReadSums]:
        """Return calls that read the checksums that ``verify`` needs first."""
        blocks, sums = self._unverified(pieces), self._sums
        return [] if sums is None else [partial(sums.load, chunk) for chunk in sums.chunks_of(blocks)]

    def is_verified(self, pieces: Pieces) -> bool:
        """Return whether ``verify`` has nothing to do. Never for fetched data, which may leave the cache again."""
        return not self.fetches and not len(self._unverified(pieces))

    def _unverified(self, pieces: Pieces) -> Int64:
        if self._sums is None or not len(pieces.starts):
            return np.empty(0, np.int64)  # verified when the chunks were mapped, or by the cache
        return self._sums.unverified(pieces.chunks, pieces.starts, pieces.starts + pieces.counts * self._row_bytes)

    def _verify_blocks(self, blocks: Int64, maps: Mapping[int, Mapped], damaged: FindDamaged = first_damaged) -> None:
        if self._sums is None or not len(blocks):
            return
        block = self._sums.verify(blocks, {chunk: mapped.memory for chunk, mapped in maps.items()}, damaged)
        if block is not None:
            chunk, number = block
            first = chunk * self.chunk_rows + number * BLOCK_BYTES // self._row_bytes
            last = chunk * self.chunk_rows + -(-(number + 1) * BLOCK_BYTES // self._row_bytes)
            raise CorruptStoreError(
                f"{chunk_file(self.path, chunk, len(self.shape))} (rows {first} to {min(last, self.shape[0])}) is "
                f"damaged (CRC-32C of block {number}): {_rebuild()}"
            )

    def read_here_and_there(self, maps: int) -> None:
        """From now on keep up to ``maps`` maps, and turn off read-ahead."""
        maps = maps if self._most is None else min(maps, self._most)
        if maps <= self._kept and self._scattered:
            return
        with self._lock:
            self._kept, self._scattered = max(self._kept, maps), True
            for mapped in self._maps.values():
                mapped.memory.madvise(mmap.MADV_RANDOM)

    def prepare(self, maps: int) -> list[ReadSums]:
        """Map up to ``maps`` chunks before the first random reads, unless they are fetched.

        Return the calls that read the checksums of all blocks, which remain to be done.
        """
        self.read_here_and_there(maps)
        if self.fetches:
            return []
        chunks = range(-(-self.shape[0] // self.chunk_rows))
        for chunk in chunks[:maps]:
            self._map(chunk)
        sums = self._sums
        return [] if sums is None else [partial(sums.load, chunk) for chunk in chunks]

    def release(self) -> None:
        """Release all maps, so that the operating system may drop their pages; the next read maps them again."""
        with self._lock:
            self._maps.clear()

    def will_need(self, begin: int, end: int) -> None:
        """Ask the kernel to read rows ``[begin, end)`` ahead."""
        for chunk, first, last in self._pieces(begin, end):
            self._map(chunk).will_need(first * self._row_bytes, last * self._row_bytes)

    def _pieces(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        size = self.chunk_rows
        return [
            (chunk, max(begin - chunk * size, 0), min(end - chunk * size, size))
            for chunk in range(begin // size, (end - 1) // size + 1)
        ]

    def _view(self, chunk: int, first: int, last: int) -> np.ndarray[Any, Any]:
        count = (last - first) * (self._row_bytes // self.dtype.itemsize)
        mapped = self._map(chunk)
        if self.fetches:
            mapped.require(first * self._row_bytes, last * self._row_bytes)
        elif self._sums is not None and not self._sums.covers(chunk, first * self._row_bytes, last * self._row_bytes):
            bounds = (np.array([row * self._row_bytes]) for row in (first, last))
            self._verify_blocks(self._sums.unverified(np.array([chunk]), *bounds), {chunk: mapped})
        flat = np.frombuffer(mapped.memory, self.dtype, count, first * self._row_bytes)
        return flat.reshape(last - first, *self.shape[1:])

    def _map(self, chunk: int) -> Mapped:
        with self._lock:
            return self._map_alone(chunk)

    def _map_alone(self, chunk: int) -> Mapped:
        if chunk in self._maps:
            self._maps.move_to_end(chunk)
            return self._maps[chunk]
        file = chunk_file(self.path, chunk, len(self.shape))
        if self.fetches:
            self._maps[chunk] = self._map_fetched(file, chunk)
        else:
            if chunk not in self._verified:
                self._verify(file, chunk)
                self._verified.add(chunk)
            self._maps[chunk] = self._files.map(file, self.chunk_bytes)
        if self._scattered:
            self._maps[chunk].memory.madvise(mmap.MADV_RANDOM)
        while len(self._maps) > self._kept:
            self._maps.popitem(last=False)
        return self._maps[chunk]

    def _map_fetched(self, file: Path, chunk: int) -> Mapped:
        where, wanted = self._where(file, chunk), self.chunk_bytes + CHECKSUM_BYTES
        try:
            mapped = self._files.map(file, self.chunk_bytes)
        except FileNotFoundError:
            raise CorruptStoreError(f"{where} is missing: {_rebuild()}") from None
        if mapped.size != wanted:
            raise CorruptStoreError(f"{where} has {mapped.size} bytes, not {wanted}: {_rebuild()}")
        return mapped

    def _where(self, file: Path, chunk: int) -> str:
        first = chunk * self.chunk_rows
        return f"{file} (rows {first} to {min(first + self.chunk_rows, self.shape[0])})"

    def _verify(self, file: Path, chunk: int) -> None:
        where = self._where(file, chunk)
        size = file.stat().st_size if file.is_file() else -1
        if size != self.chunk_bytes + CHECKSUM_BYTES:
            problem = "is missing" if size < 0 else f"has {size} bytes, not {self.chunk_bytes + CHECKSUM_BYTES}"
            raise CorruptStoreError(f"{where} {problem}: {_rebuild()}")
        if self._sums is not None:
            return  # its blocks are verified when they are first touched
        checksum, left = 0, self.chunk_bytes
        with storage_errors("read", file), open_regular(file) as handle:
            while left and (block := handle.read(min(_BLOCK, left))):
                checksum = google_crc32c.extend(checksum, block)
                left -= len(block)
            expected = int.from_bytes(handle.read(CHECKSUM_BYTES), "little")
        if checksum != expected:
            damage = f"is damaged (CRC-32C {checksum:08x}, recorded {expected:08x})"
            raise CorruptStoreError(f"{where} {damage}: {_rebuild()}")
