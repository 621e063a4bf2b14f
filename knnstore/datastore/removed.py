"""Removed documents: a table of segments and document numbers, named by its digest, without text or document names."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.arrays import Int64
from knnstore.datastore.manifest import SEGMENT_NAME
from knnstore.errors import CorruptStoreError, ResourceError
from knnstore.files import make_folder, open_regular, write_atomically

FOLDER = "removed"
REMOVED_SCHEMA = pa.schema([("segment", pa.string()), ("document", pa.int64())])

Removed = Mapping[str, Int64]
"""Ascending document numbers, int64, by the name of their segment; segments without any are left out."""


def removed_path(root: Path, name: str) -> Path:
    """Return the file of a table."""
    return root / FOLDER / f"{name}.parquet"


def save_removed(root: Path, removed: Removed, epoch: int | None) -> str | None:
    """Write the table and return its name, or None without a file if nothing is removed.

    Its bytes, and hence its name, depend on the epoch, because a writer of an earlier epoch may still delete its own.
    """
    table = removed_table(removed)
    if not len(table):
        return None
    if epoch:
        table = table.replace_schema_metadata({"epoch": str(epoch)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    name = hashlib.sha256(sink.getvalue()).hexdigest()[:16]
    path = removed_path(root, name)
    make_folder(path.parent)
    write_atomically(path, sink.getvalue())
    return name


def load_removed(root: Path, name: str | None) -> Removed:
    """Return the table of that name. Raises CorruptStoreError if it is missing or isn't what was written."""
    if name is None:
        return {}
    path = removed_path(root, name)
    try:
        with open_regular(path) as file:
            data = file.read()
    except ResourceError:
        raise
    except OSError as error:
        raise CorruptStoreError(f"{path}, the table of removed documents, can't be read: {error}") from error
    if hashlib.sha256(data).hexdigest()[:16] != name:
        raise CorruptStoreError(f"{path}, the table of removed documents, is damaged: restore it from a copy")
    try:
        table = pq.read_table(io.BytesIO(data), schema=REMOVED_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise CorruptStoreError(f"{path} can't be read as Parquet: {error}") from error
    if any(column.null_count for column in table.columns):
        raise CorruptStoreError(f"{path} has a null in a column that may not have nulls")
    loaded = removed_in(table)
    if not all(map(SEGMENT_NAME.fullmatch, loaded)):
        raise CorruptStoreError(f"{path}: segment names aren't numbers")
    return loaded


def removed_table(removed: Removed) -> pa.Table:
    """Return a table with one row per document."""
    documents = [np.unique(removed[name]) for name in sorted(removed)]
    names = [name for name, numbers in zip(sorted(removed), documents, strict=True) for _ in numbers]
    columns = {"segment": names, "document": np.concatenate([np.empty(0, np.int64), *documents])}
    return pa.table(columns, schema=REMOVED_SCHEMA)


def removed_in(table: pa.Table) -> Removed:
    """Return the documents in a table, by segment."""
    names, documents = table.column("segment").to_numpy(), table.column("document").to_numpy()
    return {str(segment): np.unique(documents[names == segment]) for segment in np.unique(names)}


def joined(one: Removed, other: Removed) -> dict[str, Int64]:
    """Return the documents in either set."""
    empty = np.empty(0, np.int64)
    names = sorted({*one, *other})
    return {name: np.union1d(one.get(name, empty), other.get(name, empty)) for name in names}


def without(one: Removed, other: Removed) -> dict[str, Int64]:
    """Return the documents in ``one`` that aren't in ``other``."""
    empty = np.empty(0, np.int64)
    left = {name: np.setdiff1d(numbers, other.get(name, empty)) for name, numbers in one.items()}
    return {name: numbers for name, numbers in left.items() if len(numbers)}
