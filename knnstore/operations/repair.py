"""``knnstore repair``."""

from knnstore.operations.shared import Many, StoreName, find_store, options_of, size
from knnstore.progress import Reporter
from knnstore.recovery.job import RepairOptions, RepairReport
from knnstore.recovery.job import repair as repair_store
from knnstore.scheduling import Job, open_job


def repair(
    store: StoreName = None,
    *,
    corpus: Many = (),
    include: Many = (),
    exclude: Many = (),
    follow_links: bool = False,
    model: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    memory: int | str = "4GB",
    reporter: Reporter | None = None,
) -> RepairReport:
    """Rebuild what ``verify`` finds damaged; ``left`` of the report lists what can't be rebuilt."""
    options = options_of(RepairOptions, locals())
    root = find_store(store)
    with open_job(Job(reporter=reporter or Reporter(), memory=size(memory), workers=workers or 0), None) as job:
        return repair_store(root, options, job)
