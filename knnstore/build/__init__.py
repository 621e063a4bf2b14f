"""Store in, index out: quantisers trained once, and lists of each segment."""

from knnstore.build.job import DRIFT_DUE, GROWTH_DUE, IndexReport, build_index, describe_index
from knnstore.build.plan import DryRun, IndexOptions, dry_run

__all__ = [
    "DRIFT_DUE",
    "GROWTH_DUE",
    "DryRun",
    "IndexOptions",
    "IndexReport",
    "build_index",
    "describe_index",
    "dry_run",
]
