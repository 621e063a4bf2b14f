"""Zarr v3 arrays of a store: created once, written in whole chunks, never read where a chunk is missing.

Only this module imports zarr, and only for writing. A chunk file is owned by one task and ends in its CRC-32C (the
``crc32c`` codec), without which a flipped bit would go unnoticed. Reading doesn't use zarr, because ``zarr.json`` may
come from an untrusted source. Only the form that is written here is accepted, and nothing is allocated before the
file's size, its checksum and its unpacked length match that form. A missing chunk is damage; zarr would read zeros.
"""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import google_crc32c
import numpy as np
import zarr
import zarr.codecs
import zarr.storage
from numcodecs import zstd

from knnstore.errors import CorruptStoreError, ResourceError, UsageError
from knnstore.files import load_json, open_regular, remove_folder, replacing_together, storage_errors, write_atomically
from knnstore.wording import command, option

Compression = Literal["none", "values", "keys"]
CHECKSUM_BYTES = 4
METADATA_FILE = "zarr.json"
_buffer = zarr.core.buffer.default_buffer_prototype().buffer.from_bytes
_DTYPES = ("int8", "uint8", "uint16", "uint32", "uint64", "int64", "float16", "float32")
_MOST_PACKED = 2**30  # unpacked bytes of a compressed chunk: a tiny file can claim any size
_LARGEST_SHAPE = 2**48
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class ArrayForm:
    """The form of an array: ``shape`` with rows first, rows per chunk, dtype (little-endian), whether it is compressed.

    A chunk spans all other dimensions.
    """

    shape: tuple[int, ...]
    chunk_rows: int
    dtype: np.dtype[Any]
    compressed: bool

    def __post_init__(self) -> None:
        whole = all(type(size) is int and size >= 0 for size in self.shape) and type(self.chunk_rows) is int
        if not whole or not self.shape or self.chunk_rows < 1 or prod(self.shape) > _LARGEST_SHAPE:
            raise ValueError(f"impossible shape {self.shape!r:.80} in chunks of {self.chunk_rows!r:.20} rows")
        if self.compressed and self.chunk_bytes > _MOST_PACKED:
            raise ValueError(f"chunks of {self.chunk_bytes} bytes; at most {_MOST_PACKED} are unpacked at once")

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row."""
        return self.dtype.itemsize * prod(self.shape[1:])

    @property
    def chunk_bytes(self) -> int:
        """Return the bytes of a whole chunk, uncompressed and without its checksum."""
        return self.chunk_rows * self.row_bytes

    @property
    def chunks(self) -> int:
        """Return the number of chunks."""
        return -(-self.shape[0] // self.chunk_rows)


class PlannedForm(NamedTuple):
    """The form of an array to create: ``shape`` with rows first, rows per chunk, dtype, compression of the chunks."""

    shape: tuple[int, ...]
    chunk_rows: int
    dtype: np.dtype[Any]
    compression: Compression


def create_array(
    path: Path, shape: tuple[int, ...], chunk_rows: int, dtype: np.dtype[Any], compression: Compression
) -> list[Path]:
    """Create the array at ``path`` unless it exists in exactly this form; return its metadata files.

    Args:
        path: folder of the array, ``<group>/<name>``; the group is created as well.
        shape: rows first.
        chunk_rows: rows per chunk; a chunk spans all other dimensions.
        dtype: element type, stored little-endian.
        compression: ``none`` for chunks to be memory-mapped.

    Raises UsageError for chunks that no reader would accept.
    """
    try:
        form = ArrayForm(tuple(map(int, shape)), int(chunk_rows), np.dtype(dtype), compression != "none")
    except ValueError as error:
        raise UsageError(f"{path}: {error}: choose fewer rows per chunk") from error
    with storage_errors("make", path):
        path.mkdir(parents=True, exist_ok=True)
        if not _is_group(path.parent):  # missing or damaged
            group: dict[str, Any] = {}
            zarr.create_group(store=zarr.storage.MemoryStore(group), zarr_format=3)
            write_atomically(path.parent / METADATA_FILE, group[METADATA_FILE].as_buffer_like())
        if not _has_form(path, form):
            remove_folder(path / "c")  # chunks of another form
            array: dict[str, Any] = {}
            zarr.create_array(
                store=zarr.storage.MemoryStore(array),
                shape=form.shape,
                chunks=(form.chunk_rows, *form.shape[1:]),
                dtype=form.dtype,
                compressors=[*_compressors(compression), zarr.codecs.Crc32cCodec()],
                fill_value=0,
            )
            write_atomically(path / METADATA_FILE, array[METADATA_FILE].as_buffer_like())
    return [path.parent / METADATA_FILE, path / METADATA_FILE]


def open_array(path: Path) -> ArrayForm:
    """Return the form of the array at ``path``. Raises CorruptStoreError if this package doesn't write such arrays."""
    metadata = load_json(path / METADATA_FILE)
    try:
        return _parse(metadata)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptStoreError(f"{path / METADATA_FILE} describes no array of a store: {error}") from error


def open_raw(path: Path) -> ArrayForm:
    """Return the form of an uncompressed array, whose chunk files are raw rows and a checksum.

    Raises CorruptStoreError if the array isn't of this kind.
    """
    form = open_array(path)
    if form.compressed:
        raise CorruptStoreError(f"{path} isn't an uncompressed array that can be memory-mapped: build the index again")
    return form


def chunk_file(path: Path, chunk: int, dimensions: int) -> Path:
    """Return the file of a row chunk of the array at ``path``."""
    return path.joinpath("c", str(chunk), *["0"] * (dimensions - 1))


def write_chunk(path: Path, chunk: int, block: np.ndarray[Any, Any]) -> Path:
    """Write rows ``[chunk * chunk_rows, … + len(block))``, the whole chunk; return its file.

    Zarr encodes the chunk in memory, and the flushed file is renamed into place. Concurrent writers of a chunk write
    the same bytes, and no reader ever sees a missing or partial file.
    """
    with storage_errors("write", path):
        encoded: dict[str, Any] = {METADATA_FILE: _buffer((path / METADATA_FILE).read_bytes())}
        # By default zarr omits chunks that contain only the fill value. A missing file has to mean damage, so they are
        # written too.
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


def write_raw_chunks(chunk: int, blocks: dict[Path, np.ndarray[Any, Any]]) -> list[Path]:
    """Write the same chunk of several uncompressed arrays, as ``write_chunk`` would; return the files.

    Each block is the whole chunk of the array at its path and is written without a copy. The caller commits the files,
    which also flushes their folders.
    """
    forms = {path: open_raw(path) for path in blocks}
    files = {path: chunk_file(path, chunk, len(form.shape)) for path, form in forms.items()}
    for path, block in blocks.items():
        form, file = forms[path], files[path]
        rows = min(form.chunk_rows, form.shape[0] - chunk * form.chunk_rows)
        if block.shape != (rows, *form.shape[1:]) or block.dtype != form.dtype:
            raise ValueError(f"{path}: chunk {chunk} given {block.dtype} {block.shape}")
        with storage_errors("make", file):
            file.parent.mkdir(parents=True, exist_ok=True)
    with replacing_together(list(files.values())) as opened:
        for output, (path, block) in zip(opened, blocks.items(), strict=True):
            data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
            padding = bytes(forms[path].chunk_bytes - len(data))
            checksum = google_crc32c.extend(google_crc32c.extend(0, data), padding)
            for part in (data.data, padding, checksum.to_bytes(CHECKSUM_BYTES, "little")):
                output.write(part)
    return list(files.values())


def read_rows(path: Path, begin: int, end: int) -> np.ndarray[Any, Any]:
    """Return rows ``[begin, end)`` of the array at ``path``, in memory.

    Raises CorruptStoreError if a chunk is missing, has the wrong size, or fails its checksum.
    """
    form = open_array(path)
    if not 0 <= begin <= end <= form.shape[0]:
        raise IndexError(f"{path}: rows [{begin}, {end}) of {form.shape[0]}")
    if begin == end:
        return np.empty((0, *form.shape[1:]), form.dtype)
    blocks = []
    for chunk in range(begin // form.chunk_rows, (end - 1) // form.chunk_rows + 1):
        first = chunk * form.chunk_rows
        rows = slice(max(begin - first, 0), min(end - first, form.chunk_rows))
        blocks.append(read_chunk(path, form, chunk)[rows])
    whole = len(blocks) == 1 and len(blocks[0]) == form.chunk_rows and blocks[0].flags.writeable
    # otherwise a copy, so that the rest of the chunk isn't kept alive, and writable, because torch requires that
    return blocks[0] if whole else np.concatenate(blocks)


def read_all(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return the whole array at ``path``, in memory.

    Raises CorruptStoreError if it is damaged or doesn't have this shape and dtype.
    """
    form = open_array(path)
    if form.shape != shape or form.dtype != dtype:
        raise CorruptStoreError(
            f"{path} is {form.dtype} {form.shape}, not {dtype} {shape}: run the command that made it with "
            f"{option('overwrite', True)}"
        )
    return read_rows(path, 0, shape[0])


def read_chunk(path: Path, form: ArrayForm, chunk: int) -> np.ndarray[Any, Any]:
    """Return a whole chunk, ``(chunk_rows, …)``, padded, of the array at ``path``, which has this form.

    Raises CorruptStoreError if it is missing, has the wrong size, or fails its checksum.
    """
    file = chunk_file(path, chunk, len(form.shape))
    first = chunk * form.chunk_rows
    where = f"{file} (rows {first} to {min(first + form.chunk_rows, form.shape[0])})"
    # upper bound of zstd's output for incompressible data
    most = (form.chunk_bytes + form.chunk_bytes // 128 + 512 if form.compressed else form.chunk_bytes) + CHECKSUM_BYTES
    try:
        with open_regular(file) as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(0)
            data = handle.read(min(most, size) + 1)  # Python allocates the requested size up front
    except ResourceError:
        raise
    except FileNotFoundError:
        raise CorruptStoreError(f"{where} is missing: see what else is damaged with {command('verify')}") from None
    except OSError as error:
        raise CorruptStoreError(f"{where} can't be read: {error.strerror or error}") from error
    try:
        return np.frombuffer(_unpack(data, form), form.dtype).reshape(form.chunk_rows, *form.shape[1:])
    except (ValueError, RuntimeError) as error:
        hint = f"See what else is damaged with {command('verify')}"
        raise CorruptStoreError(f"{where} is damaged: {error}. {hint}") from error


def _unpack(data: bytes, form: ArrayForm) -> Any:
    """Return the ``chunk_bytes`` bytes that a chunk file encodes. Raises ValueError unless it is intact."""
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if len(data) <= CHECKSUM_BYTES or int(google_crc32c.extend(0, body)).to_bytes(4, "little") != checksum:
        raise ValueError(f"its {len(data)} bytes don't match the checksum at their end")
    length = _zstd_length(data) if form.compressed else len(body)
    if length != form.chunk_bytes:
        raise ValueError(f"it holds {length} bytes, not {form.chunk_bytes}")
    if not form.compressed:
        return body
    unpacked = np.empty(form.chunk_bytes, np.uint8)
    zstd.decompress(body, unpacked)
    return unpacked


def _zstd_length(data: bytes) -> int:
    """Return the unpacked length in a zstd frame's header (RFC 8878, 3.1.1.1); nothing is unpacked beyond it."""
    if len(data) < 6 or data[:4] != _ZSTD_MAGIC:
        raise ValueError("it isn't compressed by zstd")
    flags = data[4]
    single, kind = flags >> 5 & 1, flags >> 6
    size = 1 << kind if kind or single else 0
    first = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    if not size or len(data) < first + size:
        raise ValueError("its header doesn't give the unpacked length")
    return int.from_bytes(data[first : first + size], "little") + (256 if size == 2 else 0)


def _has_form(path: Path, form: ArrayForm) -> bool:
    try:
        return open_array(path) == form
    except CorruptStoreError:
        return False


def _is_group(path: Path) -> bool:
    try:
        return load_json(path / METADATA_FILE) == {"attributes": {}, "zarr_format": 3, "node_type": "group"}
    except CorruptStoreError:
        return False


def _parse(metadata: Any) -> ArrayForm:
    """Return the form that a ``zarr.json`` describes. Raises ValueError or a lookup error for any other."""
    grid, codecs = metadata["chunk_grid"], [codec["name"] for codec in metadata["codecs"]]
    packed = codecs == ["bytes", "zstd", "crc32c"]
    fixed = {
        "zarr_format": 3,
        "node_type": "array",
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "storage_transformers": [],
        "attributes": {},
    }
    for name, value in fixed.items():
        if metadata.get(name, value) != value:
            raise ValueError(f"{name} is {metadata[name]!r:.80}")
    if metadata["fill_value"] != 0 or grid["name"] != "regular" or metadata["data_type"] not in _DTYPES:
        raise ValueError(f"{metadata['data_type']!r:.40} in a {grid['name']!r:.40} grid")
    if not packed and codecs != ["bytes", "crc32c"]:
        raise ValueError(f"its codecs are {codecs!r:.120}")
    if metadata["codecs"][0].get("configuration", {}).get("endian", "little") != "little":
        raise ValueError("its numbers are big-endian")
    shape, chunk = tuple(metadata["shape"]), tuple(grid["configuration"]["chunk_shape"])
    if not shape or chunk[1:] != shape[1:] or len(chunk) != len(shape):
        raise ValueError(f"shape {shape!r:.80} is cut into {chunk!r:.80}")
    return ArrayForm(shape, chunk[0], np.dtype(metadata["data_type"]).newbyteorder("<"), packed)


def _compressors(compression: Compression) -> list[Any]:
    # On real keys zstd level 1 saves 8 % of fp16 and 16 % of int8; shuffling and higher levels save no more.
    levels: dict[Compression, int] = {"values": 3, "keys": 1}
    return [zarr.codecs.ZstdCodec(level=levels[compression])] if compression in levels else []
