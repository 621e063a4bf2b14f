"""The names of the folders of a store, and of the plans in them; see docs/store-format.md."""

from pathlib import Path

SUFFIX = ".knnstore"
SEGMENTS, INDEX, LISTS, RUNS, SAMPLE = "segments", "index", "lists", "runs", "sample"
QUANTIZER, SUFFIXES = "quantizer", "suffixes"
SEGMENT_PLAN, INDEX_PLAN, SUFFIX_PLAN = "segment.json", "index.json", "suffixes.json"
LAYOUT_TASK, KEYS_RECORDS = "layout", "keys-*.json"
"""The commit records of a segment's keys: that of their array, and those of its chunks."""


def segment_root(root: Path, name: str) -> Path:
    """Return the folder of a segment."""
    return root / SEGMENTS / name


def index_root(root: Path, name: str) -> Path:
    """Return the folder of an index."""
    return root / INDEX / name
