"""``knnstore index``."""

from knnstore.indexes.protocols import Forecast
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import IndexReport, build_index
from knnstore.indexing.plan import dry_run as plan_build
from knnstore.operations.shared import StoreName, open_store, options_of, size, working
from knnstore.progress import Reporter
from knnstore.scheduling import Job


def index(
    store: StoreName = None,
    *,
    nlist: int | None = None,
    pq_bytes: int | None = None,
    rotation: str | None = None,
    train_sample: int | None = None,
    nprobe: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    drop_keys: bool = False,
    dry_run: bool = False,
    scheduler: str | None = None,
    scheduler_file: str | None = None,
    memory: int | str = "4GB",
    reporter: Reporter | None = None,
) -> IndexReport | Forecast:
    """Build the IVF-PQ index of a store, or resume an interrupted build. ``dry_run``: return the plan only."""
    options = options_of(IndexOptions, locals())
    opened = open_store(store)
    if dry_run:
        return plan_build(opened, options, Job(memory=size(memory), workers=workers or 0))
    with working(memory, reporter, workers, scheduler, scheduler_file) as job:
        return build_index(opened, options, job)
