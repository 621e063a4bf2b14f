"""Plan an index build before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from knnstore.indexes.plan import IndexPlan
from knnstore.indexes.registry import index_type, open_index, type_of
from knnstore.sizes import format_size

if TYPE_CHECKING:
    from knnstore.datastore.store import Datastore
    from knnstore.indexes.protocols import Forecast
    from knnstore.indexes.work import IndexOptions, Work
    from knnstore.scheduling import Job


def dry_run(store: Datastore, options: IndexOptions, job: Job) -> Forecast:
    """Return the plan of a build and its cost, with times from a short measurement; leaves nothing on the disk.

    Raises UsageError for options that don't fit the keys, ResourceError if memory or disk don't suffice.
    """
    work = plan_work(store, options, job)
    return type_of(work.folder).dry_run(store, work, sentences(store, work, options), job)


def plan_work(store: Datastore, options: IndexOptions, job: Job) -> Work:
    """Return the work on the store's index if that fits the options, else on a new one."""
    name = None if options.overwrite else store.manifest.index
    present = None if name is None else open_index(store.root, name)
    present_kind = IndexPlan.kind if present is None else present.plan.kind
    kind = options.kind or present_kind
    return index_type(kind).plan(store, options, job, present if kind == present_kind else None)


def sentences(store: Datastore, work: Work, options: IndexOptions) -> list[str]:
    """Return lines that describe the work and its cost."""
    plan, resources = work.folder.plan, work.resources
    disk = (
        f"          {format_size(resources.disk_bytes)} on disk plus {format_size(resources.temporary_bytes)} "
        f"temporary, at most {format_size(resources.peak_bytes)} of memory"
    )
    if store.manifest.index == work.folder.name and not options.overwrite:
        if not work.new:
            return [f"plan      nothing to do: all {store.rows:,} keys are indexed"]
        return [f"plan      {work.rows:,} new keys into the {plan.nlist:,} existing lists", disk]
    return [f"plan      {work.rows:,} keys of {work.words}", disk, *(f"          {note}" for note in work.notes)]
