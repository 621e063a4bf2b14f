"""A Parquet file of results that is written table by table, and has its name once it is whole."""

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.files import storage_errors
from knnstore.outputs import output_file


class ParquetFile:
    """Writes tables beside ``path``; leaving the context renames the file, or removes it after an error."""

    def __init__(self, path: str | Path, parameter: str, **settings: Any) -> None:
        """``parameter``: the one that named the file. ``settings``: those of pyarrow's writer."""
        self._path = output_file(str(path), parameter)
        self._aside = self._path.with_name(f"{self._path.name}.tmp")
        self._settings = settings
        self._file: BinaryIO | None = None
        self._writer: pq.ParquetWriter | None = None

    def append(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Write a table; all have the schema of the first."""
        with storage_errors("write", self._path):
            if self._writer is None:
                self._file = self._aside.open("wb")
                self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd", **self._settings)
            self._writer.write_table(table, row_group_size=row_group_size)

    def add_metadata(self, key: bytes, value: bytes) -> None:
        """Add a pair to the file's metadata, which lie at its end."""
        assert self._writer is not None
        self._writer.add_key_value_metadata({key: value})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with storage_errors("write", self._path):
            if self._writer is not None:
                self._writer.close()
            if self._file is not None:
                self._file.close()
            if kind is None:
                self._aside.replace(self._path)
            else:
                self._aside.unlink(missing_ok=True)
