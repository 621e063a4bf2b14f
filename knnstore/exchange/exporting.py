"""A store to memmaps of other toolkits, Parquet or a faiss index; streamed, and renamed into place when whole."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.atomic import TEMPORARY_SUFFIX, free_bytes, storage_errors, sync_file, sync_folder
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.errors import NumericsError, ResourceError, UsageError
from knnstore.exchange.rawfile import KeyType, ValueType
from knnstore.progress import Reporter
from knnstore.sizes import format_size

Format = Literal["memmap", "parquet", "faiss"]
_PARQUET_BYTES = 2**25  # a row group's keys


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to write and where: ``folder`` gets files named after the store. ``overwrite``: replace those there."""

    to: Format = "memmap"
    folder: Path = Path()
    key_type: KeyType = "float16"
    value_type: ValueType = "int32"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.to not in get_args(Format):
            raise UsageError(f"--to {self.to!r} is none of {', '.join(get_args(Format))}")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: its files, in the order that ``knnstore import`` would take them, and their bytes."""

    store: str
    files: tuple[Path, ...]
    rows: int
    dimension: int
    bytes: int


def export(store: Datastore, options: ExportOptions, reporter: Reporter | None = None) -> ExportReport:
    """Write a store's keys and values, or its index, as others read them.

    Raises UsageError for files that are there already or values that don't fit, UnfinishedError for ``faiss`` without
    an index, ResourceError if the disk can't do, NumericsError for keys beyond float16.
    """
    reporter = reporter or Reporter()
    names = _names(store, options)
    _refuse(store, options, names)
    writers: dict[str, Callable[..., None]] = {"memmap": _memmaps, "parquet": _parquet, "faiss": _faiss}
    with storage_errors("make", options.folder):
        options.folder.mkdir(parents=True, exist_ok=True)
    with _aside(names) as files, reporter.bar("export", store.rows, "keys") as advance:
        writers[options.to](store, options, files, advance)
    size = sum(path.stat().st_size for path in names)
    return ExportReport(store.name, tuple(names), store.rows, store.segments[0].dimension, size)


def _names(store: Datastore, options: ExportOptions) -> list[Path]:
    """knn-transformers finds the rows and the width in the names; so these have them as well."""
    dimension = store.segments[0].dimension
    if options.to == "memmap":
        stem = f"dstore_{store.name}_{store.rows}_{dimension}"
        return [options.folder / f"{stem}_keys.npy", options.folder / f"{stem}_vals.npy"]
    if options.to == "parquet":
        return [options.folder / f"{store.name}.parquet"]
    return [options.folder / f"index_{store.name}_{store.rows}_{dimension}.indexed"]


def _refuse(store: Datastore, options: ExportOptions, names: list[Path]) -> None:
    there = [str(path) for path in names if path.exists()]
    if there and not options.overwrite:
        raise UsageError(f"{', '.join(there)} exists: choose another --out, or replace it with --overwrite")
    vocabulary = store.manifest.model.vocabulary
    limit = np.iinfo(options.value_type).max
    if options.to == "memmap" and vocabulary - 1 > limit:
        raise UsageError(
            f"--value-type {options.value_type} holds tokens up to {limit:,}, and {store.name}'s vocabulary has "
            f"{vocabulary:,}: give a wider one"
        )
    needed, free = _bytes(store, options), free_bytes(options.folder)
    if needed > free:
        raise ResourceError(
            f"{options.folder}: the export needs {format_size(needed)} and {format_size(free)} are free: "
            "make room, or choose another --out"
        )


def _bytes(store: Datastore, options: ExportOptions) -> int:
    if options.to == "faiss":
        from knnstore.index.faissfile import faiss_bytes  # noqa: PLC0415 - the other formats need no faiss

        return faiss_bytes(store)
    each = store.segments[0].dimension * np.dtype(options.key_type).itemsize
    return store.rows * (each + np.dtype(options.value_type).itemsize)


@contextmanager
def _aside(names: list[Path]) -> Iterator[list[Path]]:
    """Names to write to; flushed and renamed when all is well, removed when not."""
    files = [path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}") for path in names]
    try:
        yield files
        with storage_errors("flush", names[0].parent):
            for file, path in zip(files, names, strict=True):
                sync_file(file)
                file.replace(path)
            sync_folder(names[0].parent)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _blocks(store: Datastore, options: ExportOptions, bytes_of_keys: int) -> Iterator[tuple[Segment, int, Any, Any]]:
    """Segment, its row, keys ``(n, d)`` in the wanted type and values ``(n,)``, block by block in row order."""
    for segment in store.segments:
        rows = max(1, bytes_of_keys // (segment.dimension * 4))
        for chunk in range(segment.chunks):  # within chunks, so that none is decompressed for its neighbour's sake
            first, last = segment.chunk_range(chunk)
            stored, values = segment.keys(first, last), segment.values(first, last)
            for begin in range(0, last - first, rows):
                keys = segment.codec.decode(stored[begin : begin + rows])
                yield segment, first + begin, _narrowed(keys, options, first + begin), values[begin : begin + rows]


def _narrowed(keys: Any, options: ExportOptions, row: int) -> Any:
    with np.errstate(over="ignore"):
        narrow = keys.astype(options.key_type)
    if not np.isfinite(narrow).all():
        raise NumericsError(f"a key from row {row:,} on is too large for {options.key_type}: use --key-type float32")
    return narrow


def _memmaps(store: Datastore, options: ExportOptions, files: list[Path], advance: Callable[[float], None]) -> None:
    little_keys, little_values = (np.dtype(kind).newbyteorder("<") for kind in (options.key_type, options.value_type))
    with storage_errors("write", files[0]), files[0].open("wb") as keys_file, files[1].open("wb") as values_file:
        for _, _, keys, values in _blocks(store, options, _PARQUET_BYTES):
            keys_file.write(keys.astype(little_keys, copy=False).data)
            values_file.write(values.astype(little_values).data)
            advance(len(values))


def _parquet(store: Datastore, options: ExportOptions, files: list[Path], advance: Callable[[float], None]) -> None:
    dimension = store.segments[0].dimension
    number = pa.float16() if options.key_type == "float16" else pa.float32()
    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("document", pa.string()),
            ("position", pa.int64()),
            ("token_id", pa.int64()),
            ("key", pa.list_(number, dimension)),
        ],
        metadata={"model": store.manifest.model.name, "layer": store.manifest.key.layer},
    )
    first_row, current = 0, store.segments[0]
    with storage_errors("write", files[0]), pq.ParquetWriter(files[0], schema, compression="zstd") as writer:
        for segment, begin, keys, values in _blocks(store, options, _PARQUET_BYTES):
            if segment is not current:
                first_row, current = first_row + current.rows, segment
            rows = np.arange(begin, begin + len(values))
            documents = segment.documents.locate(rows)
            known, which = np.unique(documents, return_inverse=True)
            names = pa.array([str(segment.documents[int(document)]) for document in known])
            columns = [
                pa.array(rows + first_row),
                names.take(pa.array(which)),
                pa.array(rows - segment.documents.first_row[documents]),
                pa.array(values.astype(np.int64)),
                pa.FixedSizeListArray.from_arrays(pa.array(keys.ravel(), number), dimension),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            advance(len(values))


def _faiss(store: Datastore, _options: ExportOptions, files: list[Path], advance: Callable[[float], None]) -> None:
    from knnstore.index.faissfile import write_faiss  # noqa: PLC0415 - the other formats need no faiss

    write_faiss(store, files[0], advance)
