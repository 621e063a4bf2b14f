"""Parquet files that appear whole and flushed, as every other file of a store does."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.files import make_folder, replacing

_GROUP_ROWS = 65_536


def write_table(path: Path, table: Any) -> None:
    """Replace ``path`` by an Arrow table in Parquet (zstd); its folder is made if it isn't there."""
    make_folder(path.parent)
    with replacing(path) as file:  # a name with a colon in it, pyarrow takes for a URL
        pq.write_table(table, file, compression="zstd")


def write_tables(path: Path, tables: Iterable[Any], schema: Any) -> None:
    """The same of a table that comes in pieces, a few of which are held; the bytes don't depend on how it was cut."""
    make_folder(path.parent)
    with replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _regrouped(tables, schema):
            writer.write_table(group)


def _regrouped(tables: Iterable[Any], schema: Any) -> Iterator[Any]:
    left = schema.empty_table()
    for table in tables:
        left = pa.concat_tables([left, table.cast(schema)])
        while len(left) >= _GROUP_ROWS:
            yield left.slice(0, _GROUP_ROWS).combine_chunks()
            left = left.slice(_GROUP_ROWS)
    if len(left):
        yield left.combine_chunks()
