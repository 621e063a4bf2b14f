"""Zarr v3 arrays of a store: made once, written a whole chunk at a time, never read where a chunk is absent.

Only this module imports zarr. A chunk file is owned by one task. Every chunk ends in its CRC-32C (the
``crc32c`` codec), because without it a flipped bit comes back silently; and zarr reads an absent or empty
chunk as zeros, so ``read_rows`` looks at the files first.
"""

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
import zarr.codecs
import zarr.storage

from knnstore.atomic import storage_errors, write_atomically
from knnstore.errors import CorruptStoreError

Compression = Literal["none", "values", "keys"]
CHECKSUM_BYTES = 4
METADATA_FILE = "zarr.json"
_buffer = zarr.core.buffer.default_buffer_prototype().buffer.from_bytes


def create_array(
    path: Path, shape: tuple[int, ...], chunk_rows: int, dtype: np.dtype[Any], compression: Compression
) -> list[Path]:
    """Make the array at ``path`` unless it is there with this very form; return its metadata files.

    Args:
        path: folder of the array, ``<group>/<name>``; the group is made as well.
        shape: rows first.
        chunk_rows: rows a chunk; a chunk spans all the other dimensions.
        dtype: of the elements, stored little-endian.
        compression: ``none`` for chunks that are to be memory-mapped.
    """
    with storage_errors("make", path):
        path.mkdir(parents=True, exist_ok=True)
        if not (path.parent / METADATA_FILE).is_file():
            group: dict[str, Any] = {}
            zarr.create_group(store=zarr.storage.MemoryStore(group), zarr_format=3)
            write_atomically(path.parent / METADATA_FILE, group[METADATA_FILE].as_buffer_like())
        if not _has_form(path, shape, chunk_rows, dtype):
            shutil.rmtree(path / "c", ignore_errors=True)  # chunks of another form
            array: dict[str, Any] = {}
            zarr.create_array(
                store=zarr.storage.MemoryStore(array),
                shape=shape,
                chunks=(chunk_rows, *shape[1:]),
                dtype=dtype,
                compressors=[*_compressors(compression), zarr.codecs.Crc32cCodec()],
                fill_value=0,
            )
            write_atomically(path / METADATA_FILE, array[METADATA_FILE].as_buffer_like())
    return [path.parent / "zarr.json", path / "zarr.json"]


def open_array(path: Path) -> Any:
    """The zarr array at ``path``, read-only. Raises CorruptStoreError if there is none that can be read."""
    try:
        return zarr.open_array(store=zarr.storage.LocalStore(path, read_only=True), mode="r", zarr_format=3)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptStoreError(f"{path} is not a readable Zarr array: {error}") from error


def open_raw(path: Path) -> tuple[tuple[int, ...], int, np.dtype[Any]]:
    """Shape, rows a chunk and dtype of an uncompressed array, whose chunk files are raw rows and a checksum.

    Raises CorruptStoreError if the array isn't of this kind.
    """
    array = open_array(path)
    codecs = [type(codec) for codec in array.metadata.codecs]
    little = array.dtype.byteorder in "<|="
    whole = array.chunks[1:] == array.shape[1:]
    if codecs != [zarr.codecs.BytesCodec, zarr.codecs.Crc32cCodec] or not little or not whole or array.ndim == 0:
        raise CorruptStoreError(f"{path} isn't an uncompressed array that can be memory-mapped: build the index again")
    return tuple(array.shape), int(array.chunks[0]), np.dtype(array.dtype)


def chunk_file(path: Path, chunk: int, dimensions: int) -> Path:
    """The file of a row chunk of the array at ``path``."""
    return path.joinpath("c", str(chunk), *["0"] * (dimensions - 1))


def write_chunk(path: Path, chunk: int, block: np.ndarray[Any, Any]) -> Path:
    """Write rows ``[chunk * chunk_rows, … + len(block))``, the whole of that chunk; return its file.

    Zarr encodes the chunk in memory and the file appears by rename, flushed: whoever writes the same chunk at the same
    time writes the same bytes, and no reader ever finds it missing or half there.
    """
    with storage_errors("write", path):
        encoded: dict[str, Any] = {METADATA_FILE: _buffer((path / METADATA_FILE).read_bytes())}
        # zarr leaves out a chunk that is all fill value, unless told otherwise when the array is opened; a missing file
        # has to mean damage, so it is written too.
        with zarr.config.set({"array.write_empty_chunks": True}):
            array: Any = zarr.open_array(store=zarr.storage.MemoryStore(encoded), mode="r+", zarr_format=3)
        begin = chunk * array.chunks[0]
        if len(block) != min(array.chunks[0], array.shape[0] - begin):
            raise ValueError(f"{path}: chunk {chunk} given {len(block)} rows")
        array[begin : begin + len(block)] = block
        file = chunk_file(path, chunk, array.ndim)
        file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, encoded[file.relative_to(path).as_posix()].as_buffer_like())
    return file


def read_rows(path: Path, begin: int, end: int) -> np.ndarray[Any, Any]:
    """Rows ``[begin, end)`` of the array at ``path``, in memory.

    Raises CorruptStoreError if a chunk is absent, empty or fails its checksum.
    """
    array = open_array(path)
    if not 0 <= begin <= end <= array.shape[0]:
        raise IndexError(f"{path}: rows [{begin}, {end}) of {array.shape[0]}")
    if begin == end:
        return np.empty((0, *array.shape[1:]), array.dtype)
    rows = array.chunks[0]
    for chunk in range(begin // rows, (end - 1) // rows + 1):
        file = chunk_file(path, chunk, array.ndim)
        if not file.is_file() or file.stat().st_size <= CHECKSUM_BYTES:
            raise CorruptStoreError(f"{file} (rows from {chunk * rows}) is missing or empty: run the ingest again")
    try:
        return np.asarray(array[begin:end])
    except (ValueError, RuntimeError) as error:
        raise CorruptStoreError(f"{path}: rows [{begin}, {end}) are damaged: {error}") from error


def read_all(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The whole array at ``path``, in memory.

    Raises CorruptStoreError if it is damaged, or not of this shape and dtype.
    """
    array = open_array(path)
    if array.shape != shape or array.dtype != dtype:
        raise CorruptStoreError(
            f"{path} is {array.dtype} {array.shape}, not {dtype} {shape}: run the command that made it with --overwrite"
        )
    return read_rows(path, 0, shape[0])


def _compressors(compression: Compression) -> list[Any]:
    # zstd-1 is the knee on real keys: 8 % off fp16 and 16 % off int8; shuffling and higher levels gain nothing more.
    levels: dict[Compression, int] = {"values": 3, "keys": 1}
    return [zarr.codecs.ZstdCodec(level=levels[compression])] if compression in levels else []


def _has_form(path: Path, shape: tuple[int, ...], chunk_rows: int, dtype: np.dtype[Any]) -> bool:
    if not (path / "zarr.json").is_file():
        return False
    array = open_array(path)
    return bool(array.shape == shape and array.chunks[0] == chunk_rows and array.dtype == dtype)
