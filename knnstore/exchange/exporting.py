"""Export a store as memmaps of other toolkits, Parquet or a faiss index: streamed, and renamed when complete."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.errors import NumericsError, ResourceError, UsageError
from knnstore.exchange.rawfile import KeyType, ValueType
from knnstore.files import TEMPORARY_SUFFIX, flush, free_bytes, storage_errors
from knnstore.indexes.plan import finished_index
from knnstore.indexes.protocols import FaissFile
from knnstore.indexes.registry import open_index, type_of
from knnstore.outputs import output_path
from knnstore.progress import Reporter
from knnstore.sizes import format_size
from knnstore.wording import option

Format = Literal["memmap", "parquet", "faiss"]
_BLOCK_BYTES = 2**25  # size of the float32 keys in memory at a time


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to write, and where: files in ``folder`` are named after the store. ``overwrite``: replace existing ones."""

    to: Format = "memmap"
    folder: Path = Path()
    key_type: KeyType = "float16"
    value_type: ValueType = "int32"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.to not in get_args(Format):
            formats = get_args(Format)
            raise UsageError.about("to", self.to, f"is none of {', '.join(formats)}", limit=formats, quoted=True)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: the files, in the order in which ``knnstore import`` takes them, and their bytes."""

    store: str
    files: tuple[Path, ...]
    rows: int
    dimension: int
    bytes: int


def export(store: Datastore, options: ExportOptions, reporter: Reporter | None = None) -> ExportReport:
    """Write a store's keys and values, or its index, in a format of other tools.

    Removed documents are left out, and the rows of an export are numbered without them.

    Raises UsageError for existing files or values that don't fit, UnfinishedError for ``faiss`` without an index,
    ResourceError if the disk is too small, NumericsError for keys beyond float16.
    """
    reporter = reporter or Reporter()
    options = replace(options, folder=output_path(str(options.folder), "out"))
    names = _names(store, options)
    _refuse(store, options, names)
    writers: dict[str, Callable[..., None]] = {"memmap": _memmaps, "parquet": _parquet, "faiss": _faiss}
    with storage_errors("make", options.folder):
        options.folder.mkdir(parents=True, exist_ok=True)
    with _aside(names) as files, reporter.bar("export", store.live_rows, "keys") as advance:
        writers[options.to](store, options, files, advance)
    size = sum(path.stat().st_size for path in names)
    return ExportReport(store.name, tuple(names), store.live_rows, store.segments[0].dimension, size)


def _names(store: Datastore, options: ExportOptions) -> list[Path]:
    """Return the paths of the files, with rows and width in their names, where knn-transformers looks for them."""
    dimension = store.segments[0].dimension
    if options.to == "memmap":
        stem = f"dstore_{store.name}_{store.live_rows}_{dimension}"
        return [options.folder / f"{stem}_keys.npy", options.folder / f"{stem}_vals.npy"]
    if options.to == "parquet":
        return [options.folder / f"{store.name}.parquet"]
    return [options.folder / f"index_{store.name}_{store.live_rows}_{dimension}.indexed"]


def _refuse(store: Datastore, options: ExportOptions, names: list[Path]) -> None:
    existing = [str(path) for path in names if path.exists()]
    if existing and not options.overwrite:
        remedy = f"choose another {option('out')}, or replace it with {option('overwrite', True)}"
        raise UsageError(f"{', '.join(existing)} exists: {remedy}")
    vocabulary = store.manifest.model.vocabulary
    limit = np.iinfo(options.value_type).max
    if options.to == "memmap" and vocabulary - 1 > limit:
        fault = f"holds tokens up to {limit:,}, and {store.name}'s vocabulary has {vocabulary:,}"
        raise UsageError.about("value_type", options.value_type, fault, limit=limit, remedy="give a wider one")
    needed, free = _bytes(store, options), free_bytes(options.folder)
    if needed > free:
        raise ResourceError(
            f"{options.folder}: the export needs {format_size(needed)} and {format_size(free)} are free: "
            f"make room, or choose another {option('out')}"
        )


def _bytes(store: Datastore, options: ExportOptions) -> int:
    if options.to == "faiss":
        return _faiss_file(store).bytes
    each = store.segments[0].dimension * np.dtype(options.key_type).itemsize
    return store.live_rows * (each + np.dtype(options.value_type).itemsize)


@contextmanager
def _aside(names: list[Path]) -> Iterator[list[Path]]:
    """Provide temporary files to write to; on success they are flushed and renamed, else removed."""
    files = [path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}") for path in names]
    for path in names:
        _remove_leftovers(path)
    try:
        yield files
        with storage_errors("flush", names[0].parent):
            for file, path in zip(files, names, strict=True):
                flush(file)
                file.replace(path)
            flush(names[0].parent)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of this path left by exports whose processes no longer exist."""
    with storage_errors("clean", path.parent):
        for leftover in path.parent.glob(f"{escape(path.name)}.*{TEMPORARY_SUFFIX}"):
            process = leftover.name.removeprefix(f"{path.name}.").removesuffix(TEMPORARY_SUFFIX)
            if process.isdecimal() and not Path(f"/proc/{process}").exists():
                leftover.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Converted keys ``(n, d)`` and values ``(n,)`` of ``rows`` of a segment; ``first``: their row in the export."""

    segment: Segment
    rows: Any
    first: int
    keys: Any
    values: Any


def _blocks(store: Datastore, options: ExportOptions) -> Iterator[_Block]:
    """Yield all rows that aren't removed, block by block in row order."""
    first = 0
    for segment, hidden in zip(store.segments, store.hidden, strict=True):
        size = max(1, _BLOCK_BYTES // (segment.dimension * 4))
        for chunk in range(segment.chunks):  # blocks don't cross chunks, so that each is decompressed once
            begin, end = segment.chunk_range(chunk)
            stored, values = segment.keys(begin, end), segment.values(begin, end)
            live = hidden.outside(begin, end)
            rows = np.arange(begin, end) if live is None else live
            for part in np.split(rows, range(size, len(rows), size)):
                if len(part):
                    keys = _narrowed(segment.codec.decode(stored[part - begin]), options, int(part[0]))
                    yield _Block(segment, part, first, keys, values[part - begin])
                    first += len(part)


def _narrowed(keys: Any, options: ExportOptions, row: int) -> Any:
    with np.errstate(over="ignore"):
        narrow = keys.astype(options.key_type)
    if not np.isfinite(narrow).all():
        wider = option("key_type", "float32")
        raise NumericsError(f"a key from row {row:,} on is too large for {options.key_type}: use {wider}")
    return narrow


def _memmaps(store: Datastore, options: ExportOptions, files: list[Path], advance: Callable[[float], None]) -> None:
    little_keys, little_values = (np.dtype(kind).newbyteorder("<") for kind in (options.key_type, options.value_type))
    with storage_errors("write", files[0]), files[0].open("wb") as keys_file, files[1].open("wb") as values_file:
        for block in _blocks(store, options):
            keys_file.write(block.keys.astype(little_keys, copy=False).data)
            values_file.write(block.values.astype(little_values).data)
            advance(len(block.rows))


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
    with (
        storage_errors("write", files[0]),
        files[0].open("wb") as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for block in _blocks(store, options):
            table = block.segment.documents
            documents = table.locate(block.rows)
            known, which = np.unique(documents, return_inverse=True)
            names = pa.array([str(table[int(document)]) for document in known])
            columns = [
                pa.array(block.first + np.arange(len(block.rows))),
                names.take(pa.array(which)),
                pa.array(block.rows - table.first_row[documents]),
                pa.array(block.values.astype(np.int64)),
                pa.FixedSizeListArray.from_arrays(pa.array(block.keys.ravel(), number), dimension),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            advance(len(block.rows))


def _faiss(store: Datastore, _options: ExportOptions, files: list[Path], advance: Callable[[float], None]) -> None:
    _faiss_file(store).write(files[0], advance)


def _faiss_file(store: Datastore) -> FaissFile:
    return type_of(open_index(store.root, finished_index(store))).faiss_file(store)
