"""CRC-32C of every 16 KiB of an uncompressed array, so that a list can be verified without reading its whole chunk.

The checksums are an array of their own beside it, ``keys_sums`` beside ``keys``, with one chunk per chunk and one
number per block: uint32 (chunks · blocks per chunk,). Indexes of older versions have none.
"""

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from knnstore.arrays import Int64, Uint8, Uint32
from knnstore.datastore.arrays import METADATA_FILE, ArrayForm, create_array, open_array, read_chunk
from knnstore.errors import CorruptStoreError
from knnstore.files import files_of
from knnstore.wording import option

BLOCK_BYTES = 2**14


def sums_path(path: Path) -> Path:
    """Return the folder of the checksums of the array at ``path``."""
    return path.with_name(f"{path.name}_sums")


def blocks_a_chunk(form: ArrayForm) -> int:
    """Return the number of blocks per chunk; the last block may be shorter."""
    return -(-form.chunk_bytes // BLOCK_BYTES)


def create_sums(path: Path) -> list[Path]:
    """Create the array of checksums of the array at ``path``; return its metadata files."""
    form = open_array(path)
    size = blocks_a_chunk(form)
    return create_array(sums_path(path), (form.chunks * size,), size, np.dtype(np.uint32), "none")


def block_sums(path: Path, block: np.ndarray[Any, Any]) -> Uint32:
    """Return the checksums of a chunk, with rows ``block``, of the array at ``path``: uint32 (blocks per chunk,)."""
    form = open_array(path)
    data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
    sums = np.empty(blocks_a_chunk(form), np.uint32)
    for number in range(len(sums)):
        begin, end = number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, form.chunk_bytes)
        part = data[begin:end]  # the last chunk is padded with zeros
        sums[number] = google_crc32c.extend(google_crc32c.extend(0, part), bytes(end - begin - len(part)))
    return sums


class BlockSums:
    """Verify the blocks of an array, each block once."""

    def __init__(self, path: Path, form: ArrayForm) -> None:
        self._path, self._size, self._chunk_bytes = path, blocks_a_chunk(form), form.chunk_bytes
        stored = open_array(path)
        if stored.shape != (form.chunks * self._size,) or stored.chunk_rows != self._size or stored.dtype != np.uint32:
            again = f"build the index again with {option('overwrite', True)}"
            raise CorruptStoreError(f"{path} doesn't match the array beside it: {again}")
        self._form = stored
        self._verified = np.zeros(form.chunks * self._size, np.bool_)
        self._sums: dict[int, Uint32] = {}

    @classmethod
    def of(cls, path: Path, form: ArrayForm) -> "BlockSums | None":
        """Return the checksums of the array at ``path``; None if it has none or the object cache verifies its own."""
        if files_of(path).fetches:
            return None
        sums = sums_path(path)
        return cls(sums, form) if (sums / METADATA_FILE).is_file() else None

    def unverified(self, chunks: Int64, begins: Int64, ends: Int64) -> Int64:
        """Return the unverified blocks that overlap the byte ranges ``[begins, ends)`` of the chunks.

        Blocks are positions in the array of checksums: int64 (blocks,), unique.
        """
        firsts = chunks * self._size + begins // BLOCK_BYTES
        counts = chunks * self._size + (ends - 1) // BLOCK_BYTES + 1 - firsts
        # for each range, its consecutive blocks: firsts, firsts + 1, … (counts of them), without a Python loop
        blocks = np.repeat(firsts - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
        return np.unique(blocks[~self._verified[blocks]])

    def covers(self, chunk: int, begin: int, end: int) -> bool:
        """Return whether all blocks that overlap bytes ``[begin, end)`` of a chunk are verified; fast for one range."""
        first = chunk * self._size
        return bool(self._verified[first + begin // BLOCK_BYTES : first + (end - 1) // BLOCK_BYTES + 1].all())

    def chunks_of(self, blocks: Int64) -> list[int]:
        """Return the chunks that these blocks belong to and whose checksums haven't been read yet."""
        return [chunk for chunk in np.unique(blocks // self._size).tolist() if chunk not in self._sums]

    def load(self, chunk: int) -> None:
        """Read the checksums of a chunk."""
        self._sums[chunk] = read_chunk(self._path, self._form, chunk)

    def verify(self, blocks: Int64, maps: Mapping[int, mmap.mmap], damaged: "FindDamaged") -> tuple[int, int] | None:
        """Verify blocks of the mapped chunks with ``damaged``; return chunk and number of a damaged block, or None."""
        chunks, numbers = np.divmod(blocks, self._size)
        for chunk in self.chunks_of(blocks):
            self.load(chunk)
        begins = numbers * BLOCK_BYTES
        sizes = np.minimum(BLOCK_BYTES, self._chunk_bytes - begins)
        for chunk, mapped in maps.items():
            members = np.flatnonzero(chunks == chunk)
            if not len(members):
                continue
            data = np.frombuffer(mapped, np.uint8)
            bad = damaged(data, begins[members], sizes[members], self._sums[chunk][numbers[members]])
            if bad is not None:
                return chunk, int(numbers[members[bad]])
            self._verified[blocks[members]] = True
        return None


FindDamaged = Callable[[Uint8, Int64, Int64, Uint32], int | None]


def first_damaged(data: Uint8, begins: Int64, sizes: Int64, sums: Uint32) -> int | None:
    """Return the position of the first block of the data that doesn't match its CRC-32C; None if all match."""
    for number, (begin, size) in enumerate(zip(begins.tolist(), sizes.tolist(), strict=True)):
        if google_crc32c.extend(0, data[begin : begin + size]) != sums[number]:
            return number
    return None
