"""Parquet files that appear whole and flushed, as every other file of a store does."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from knnstore.atomic import make_folder, replacing_path, storage_errors


def write_table(path: Path, table: Any) -> None:
    """Replace ``path`` by an Arrow table in Parquet (zstd); its folder is made if it isn't there."""
    make_folder(path.parent)
    with storage_errors("write", path), replacing_path(path) as aside:
        pq.write_table(table, aside, compression="zstd")
