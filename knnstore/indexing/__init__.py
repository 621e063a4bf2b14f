"""Store in, index out: trained once, and filled with each segment."""

from knnstore.indexes.protocols import Forecast
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import DRIFT_DUE, GROWTH_DUE, IndexReport, build_index, describe_index
from knnstore.indexing.plan import dry_run

__all__ = [
    "DRIFT_DUE",
    "GROWTH_DUE",
    "Forecast",
    "IndexOptions",
    "IndexReport",
    "build_index",
    "describe_index",
    "dry_run",
]
