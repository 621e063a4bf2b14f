"""The digests of texts that were removed on purpose, which ``ingest`` doesn't add again. They are kept permanently.

The record of a removal contains the SHA-256 of its file of digests, so that the two can't be mixed up.
"""

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.datastore.history import OVERWRITE, TAKEDOWN, Change, changes, takedown_path
from knnstore.datastore.manifest import Manifest
from knnstore.errors import CorruptStoreError, ResourceError
from knnstore.files import make_folder, open_regular, write_atomically

_SCHEMA = pa.schema([("sha256", pa.binary(32))])

Digests = np.ndarray[Any, np.dtype[np.bytes_]]
"""SHA-256 of texts, of NumPy's dtype S32."""


def save_takedown(root: Path, present: Manifest, digests: Digests) -> str:
    """Write the digests of the texts that the change after the state ``present`` removes.

    Return the SHA-256 of the file, for the change's record.
    """
    path = takedown_path(root, replace(present, state=present.state + 1))
    values = pa.array([digest.ljust(32, b"\0") for digest in np.unique(digests).tolist()], pa.binary(32))
    sink = io.BytesIO()
    pq.write_table(pa.table({"sha256": values}, schema=_SCHEMA), sink, compression="zstd")
    make_folder(path.parent)
    write_atomically(path, sink.getvalue())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def load_takedowns(root: Path) -> Digests:
    """Return the digests of all texts that were removed and not restored since, sorted."""
    known: dict[int, frozenset[bytes]] = {}
    present: frozenset[bytes] = frozenset()
    for change in changes(root):
        if change.kind == OVERWRITE:
            present = frozenset()
        elif TAKEDOWN in change.facts or change.kind == "remove" or takedown_path(root, change.state).is_file():
            present |= _load(root, change)
        elif change.kind == "restore":
            present = known.get(int(change.facts.get("to", -1)), present)
        known[change.state.state] = present
    return np.array(sorted(present), "S32")


def takedown_damage(root: Path, change: Change) -> str | None:
    """Return what is wrong with a removal's file of digests, in words, or None."""
    try:
        with open_regular(takedown_path(root, change.state)) as file:
            data = file.read()
    except ResourceError:
        raise
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"can't be read ({error.strerror or error})"
    expected = change.facts.get(TAKEDOWN)
    if expected is None:
        return "has no checksum in its record"
    return None if hashlib.sha256(data).hexdigest() == expected else "isn't what was written"


def _load(root: Path, change: Change) -> frozenset[bytes]:
    path = takedown_path(root, change.state)
    if TAKEDOWN in change.facts and (damage := takedown_damage(root, change)):
        raise CorruptStoreError(f"{path}, which says what was taken down, {damage}: restore it from a copy")
    try:
        with open_regular(path) as file:
            data = file.read()
    except ResourceError:
        raise
    except FileNotFoundError:
        raise CorruptStoreError(f"{path}, which says what was taken down, is missing: restore it from a copy") from None
    except OSError as error:
        raise CorruptStoreError(f"{path}, which says what was taken down, can't be read: {error}") from error
    try:
        return frozenset(pq.read_table(io.BytesIO(data), schema=_SCHEMA).column("sha256").to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise CorruptStoreError(f"{path}, which says what was taken down, can't be read: {error}") from error
