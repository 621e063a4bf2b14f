"""``knnstore export``."""

from pathlib import Path

from knnstore.exchange.exporting import ExportOptions, ExportReport, Format
from knnstore.exchange.exporting import export as export_store
from knnstore.exchange.rawfile import KeyType, ValueType
from knnstore.operations.shared import StoreName, open_store
from knnstore.progress import Reporter


def export(
    store: StoreName = None,
    *,
    to: Format = "memmap",
    out: str | Path = ".",
    key_type: KeyType = "float16",
    value_type: ValueType = "int32",
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> ExportReport:
    """Export a store as memmaps or Parquet, or its index for faiss."""
    options = ExportOptions(to, Path(out), key_type, value_type, overwrite)
    return export_store(open_store(store), options, reporter)
