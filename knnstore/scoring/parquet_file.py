"""Write a Parquet file of results table by table, and rename it into place once it is complete."""

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.files import storage_errors
from knnstore.outputs import output_file


class ParquetFile:
    """Writes tables to a temporary file beside ``path``, which is renamed at the end or removed after an error."""

    def __init__(self, path: str | Path, parameter: str, **settings: Any) -> None:
        """``parameter``: the parameter that named the file. ``settings``: of pyarrow's writer."""
        self._path = output_file(str(path), parameter)
        self._aside = self._path.with_name(f"{self._path.name}.tmp")
        self._settings = settings
        self._file: BinaryIO | None = None
        self._writer: pq.ParquetWriter | None = None

    def append(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Write a table; all tables must have the schema of the first."""
        with storage_errors("write", self._path):
            if self._writer is None:
                self._file = self._aside.open("wb")
                self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd", **self._settings)
            self._writer.write_table(table, row_group_size=row_group_size)

    def add_metadata(self, key: bytes, value: bytes) -> None:
        """Add a pair to the metadata at the end of the file."""
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
