"""The names of a store's folders and of their plan files; see docs/store-format.md."""

from pathlib import Path

SUFFIX = ".knnstore"
SEGMENTS, INDEX, LISTS, RUNS, SAMPLE = "segments", "index", "lists", "runs", "sample"
QUANTIZER, SUFFIXES = "quantizer", "suffixes"
SEGMENT_PLAN, INDEX_PLAN, SUFFIX_PLAN = "segment.json", "index.json", "suffixes.json"
DOCUMENTS_FILE = "documents.parquet"
LAYOUT_TASK, KEYS_RECORDS = "layout", "keys-*.json"
"""The commit records of a segment's keys: of their array, and of its chunks (a glob)."""


def segment_root(root: Path, name: str) -> Path:
    """Return the folder of a segment."""
    return root / SEGMENTS / name


def index_root(root: Path, name: str) -> Path:
    """Return the folder of an index."""
    return root / INDEX / name
