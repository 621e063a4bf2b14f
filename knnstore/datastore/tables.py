"""Write Parquet files atomically and flushed, as all files of a store are."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.files import make_folder, replacing

_GROUP_ROWS = 65_536


def write_table(path: Path, table: Any) -> None:
    """Write an Arrow table to ``path`` as Parquet (zstd), replacing it; create its folder if necessary."""
    make_folder(path.parent)
    with replacing(path) as file:  # an open file, because pyarrow takes a name with a colon for a URL
        pq.write_table(table, file, compression="zstd")


def write_tables(path: Path, tables: Iterable[Any], schema: Any) -> None:
    """Write a table given in pieces, of which few are held; the bytes don't depend on how it is cut."""
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
