"""Which texts were removed on purpose, by their digests alone: what ``ingest`` doesn't bring back. Kept for good."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.atomic import make_folder, read_raw, replacing_path, storage_errors
from knnstore.datastore.history import FOLDER, changes
from knnstore.errors import CorruptStoreError

_SCHEMA = pa.schema([("sha256", pa.binary(32))])

Digests = np.ndarray[Any, np.dtype[np.bytes_]]
"""SHA-256 of texts, of NumPy's dtype S32."""


def save_takedown(root: Path, state: int, digests: Digests) -> None:
    """Write the digests of the texts that the change to ``state`` removes."""
    path = _path(root, state)
    values = pa.array([digest.ljust(32, b"\0") for digest in np.unique(digests).tolist()], pa.binary(32))
    make_folder(path.parent)
    with storage_errors("write", path), replacing_path(path) as aside:
        pq.write_table(pa.table({"sha256": values}, schema=_SCHEMA), aside, compression="zstd")


def load_takedowns(root: Path) -> Digests:
    """The digests of all texts that were removed and not brought back by a return to an earlier state: sorted."""
    known: dict[int, frozenset[bytes]] = {}
    present: frozenset[bytes] = frozenset()
    for change in changes(root):
        if (path := _path(root, change.state.state)).is_file():
            present |= _load(path)
        elif change.kind == "remove":
            raise CorruptStoreError(f"{path}, which says what was taken down, is missing: restore it from a copy")
        elif change.kind == "restore":
            present = known.get(int(change.facts.get("to", -1)), present)
        known[change.state.state] = present
    return np.array(sorted(present), "S32")


def _path(root: Path, state: int) -> Path:
    return root / FOLDER / f"{state:06d}.parquet"


def _load(path: Path) -> frozenset[bytes]:
    try:
        return frozenset(pq.read_table(pa.BufferReader(read_raw(path)), schema=_SCHEMA).column("sha256").to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise CorruptStoreError(f"{path}, which says what was taken down, can't be read: {error}") from error
