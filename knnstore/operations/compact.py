"""``knnstore compact``."""

from knnstore.datastore.store import Datastore
from knnstore.living.compact import CompactOptions, CompactReport, plan_compaction
from knnstore.living.compact import compact as compact_store
from knnstore.operations.shared import StoreName, find_store, working
from knnstore.progress import Reporter


def compact(
    store: StoreName = None,
    *,
    auto: bool = False,
    most_segments: int = 8,
    dry_run: bool = False,
    scheduler: str | None = None,
    scheduler_file: str | None = None,
    workers: int | None = None,
    memory: int | str = "4GB",
    reporter: Reporter | None = None,
) -> CompactReport:
    """Merge segments and delete removed documents from disk. ``dry_run``: return what would be done."""
    root, options = find_store(store), CompactOptions(auto, most_segments)
    if dry_run:
        return plan_compaction(Datastore(root), options)
    with working(memory, reporter, workers, scheduler, scheduler_file) as job:
        return compact_store(root, options, job)
