"""Store in, index out: trained once, and filled with each segment."""

from knnstore.build.job import DRIFT_DUE, GROWTH_DUE, IndexReport, build_index, describe_index
from knnstore.build.plan import dry_run
from knnstore.index.protocols import Forecast
from knnstore.index.work import IndexOptions

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
