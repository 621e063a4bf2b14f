"""``knnstore remove``."""

from dataclasses import dataclass

from knnstore.datastore.store import Datastore
from knnstore.living.compact import CompactOptions, CompactReport
from knnstore.living.compact import compact as compact_store
from knnstore.living.remove import RemoveReport, plan_removal
from knnstore.living.remove import remove as remove_documents
from knnstore.operations.shared import Many, StoreName, find_store, size, strings
from knnstore.progress import Reporter
from knnstore.scheduling import Job, find_cluster, open_job


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed, or would be; ``compacted``: the result of the compaction that followed, if any."""

    removed: RemoveReport
    compacted: CompactReport | None = None


def remove(
    store: StoreName = None,
    *,
    document: Many,
    note: str = "",
    now: bool = False,
    dry_run: bool = False,
    scheduler: str | None = None,
    scheduler_file: str | None = None,
    workers: int | None = None,
    memory: int | str = "4GB",
    reporter: Reporter | None = None,
) -> Removal:
    """Remove documents from a store, so that no search finds them. ``now``: also compact it, to delete them on disk."""
    cluster = find_cluster(scheduler, scheduler_file, workers)
    root, patterns = find_store(store), strings(document)
    if dry_run:
        return Removal(plan_removal(Datastore(root), patterns))
    removed = remove_documents(root, patterns, note)
    if not now:
        return Removal(removed)
    job = Job(reporter=reporter or Reporter(), memory=size(memory), workers=workers or 0)
    with open_job(job, cluster) as job:
        return Removal(removed, compact_store(root, CompactOptions(), job))
