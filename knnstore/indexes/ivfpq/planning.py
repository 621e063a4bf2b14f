"""Plan an index build before any of it runs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.errors import ResourceError
from knnstore.files import free_bytes
from knnstore.indexes.ivfpq.plan import FORMAT_VERSION, IvfPqFolder, IvfPqPlan
from knnstore.indexes.plan import new_index, segment_reference, segment_references
from knnstore.indexes.work import IndexOptions, Work, new_segments
from knnstore.planning import (
    FEWEST_LISTS,
    BuildSeconds,
    IndexResources,
    IndexSize,
    choose_cells,
    choose_nlist,
    choose_nprobe,
    choose_pq_bytes,
    choose_train_rows,
    forecast,
    parse_rotation,
    plan_resources,
    shorter_codes,
)
from knnstore.progress import duration
from knnstore.scheduling import Job, available_cores
from knnstore.sizes import format_size


@dataclass(frozen=True, slots=True)
class IvfPqDryRun:
    """Forecast of a build. ``seconds``: as measured on this machine; None if nothing is left to do."""

    nlist: int
    pq_bytes: int
    train_rows: int
    nprobe: int
    new_rows: int
    resources: IndexResources
    seconds: BuildSeconds | None
    total_seconds: float
    sentences: tuple[str, ...]


def dry_run(store: Datastore, work: Work, says: Sequence[str], job: Job) -> IvfPqDryRun:
    """Return a forecast of the work, whose description so far is ``says``, with the time by a short measurement."""
    from knnstore.indexes.ivfpq.calibration import measure_rates  # noqa: PLC0415 - a build needs none of it

    plan, seconds = work.folder.plan, None
    if work.new:
        started = time.perf_counter()
        rates = measure_rates(store, plan)
        seconds = forecast(rates, work.rows, trains=work.trains, workers=job.workers, cores=available_cores())
        says = [*says, _time_sentence(seconds, time.perf_counter() - started)]
    return IvfPqDryRun(
        nlist=plan.nlist,
        pq_bytes=plan.pq_bytes,
        train_rows=plan.train_rows,
        nprobe=plan.nprobe,
        new_rows=work.rows,
        resources=work.resources,
        seconds=seconds,
        total_seconds=seconds.total if seconds else 0.0,
        sentences=tuple(says),
    )


def _time_sentence(seconds: BuildSeconds, spent: float) -> str:
    stages = [("train", seconds.train), ("fill", seconds.fill), ("merge", seconds.merge), ("check", seconds.check)]
    parts = ", ".join(f"{name} {duration(value)}" for name, value in stages if value)
    return f"time      about {duration(seconds.total)}: {parts} (measured here on two chunks of keys, in {spent:.0f} s)"


def plan_work(store: Datastore, options: IndexOptions, job: Job, present: IvfPqFolder | None) -> Work:
    """Return the work on the ``present`` index if its quantisers satisfy the options, else on a new one."""
    if present is None or not _serves(present.plan, store, options):
        return _fitting_work(store, options, job)
    return _work(store, options, job, present, trains=False)


def _work(store: Datastore, options: IndexOptions, job: Job, folder: IvfPqFolder, *, trains: bool) -> Work:
    plan, new = folder.plan, new_segments(store, trains=trains)
    resources = plan_resources(
        index_size(new or store.segments),
        nlist=plan.nlist,
        pq_bytes=plan.pq_bytes,
        train_rows=plan.train_rows if trains else 1,
        memory=job.memory,
        workers=job.workers,
    )
    chosen = "" if options.nlist else " (chosen from the number of keys)"
    after = f" after {plan.rotation}" if plan.rotation else ""
    words = (
        f"{plan.dimension} {plan.key_dtype} into {plan.nlist:,} lists{chosen}, codes of {plan.pq_bytes} bytes{after}, "
        f"trained on {plan.train_rows:,} keys"
    )
    return Work(folder, new, resources, trains, words)


def _fitting_work(store: Datastore, options: IndexOptions, job: Job) -> Work:
    """Return the work on a new index: the usual one, or with fewer lists or shorter codes if memory or disk is short.

    Values chosen by the user aren't reduced. Raises ResourceError if no plan fits in memory.
    """
    segment_references(store)  # raises if there are no keys to index
    nlist, note = choose_nlist(store.live_rows, options.nlist)
    usual = _new_plan(store, options, nlist)
    notes, pq_bytes = [note] if note else [], usual.pq_bytes
    refused: ResourceError | None = None
    while True:
        plan = _new_plan(store, replace(options, pq_bytes=pq_bytes), nlist)
        try:
            folder = new_index(store.root, plan, store.manifest.epoch)
            work = _work(store, options, job, folder, trains=True)
        except ResourceError as error:
            refused = refused or error
            if options.nlist is not None or nlist // 2 < FEWEST_LISTS:
                raise refused from None
            nlist //= 2
            continue
        shorter = None if options.pq_bytes is not None else shorter_codes(plan.coded_dimension, pq_bytes)
        if shorter is None or work.room <= free_bytes(store.root):
            break
        pq_bytes = shorter
    if nlist < usual.nlist:
        memory = format_size(job.memory)
        notes.append(f"{nlist:,} lists, not {usual.nlist:,}, to fit in {memory} of memory: a query reads more keys")
    if pq_bytes < usual.pq_bytes:
        notes.append(f"codes of {pq_bytes} bytes, not {usual.pq_bytes}, to fit on the disk: lower recall by codes")
    return replace(work, notes=tuple(notes))


def _new_plan(store: Datastore, options: IndexOptions, nlist: int) -> IvfPqPlan:
    references = segment_references(store)
    first, rows = store.segments[0], store.live_rows
    return IvfPqPlan(
        version=FORMAT_VERSION,
        nlist=nlist,
        cells=choose_cells(nlist),
        pq_bytes=choose_pq_bytes(_coded_dimension(first.dimension, options.rotation), options.pq_bytes),
        train_rows=choose_train_rows(rows, nlist, options.train_sample),
        seed=options.seed,
        nprobe=choose_nprobe(rows, nlist, options.nprobe),
        dimension=first.dimension,
        key_dtype=first.plan.key_dtype,
        trained_on=references,
        removed=store.manifest.removed,
        rotation=options.rotation,
    )


def _serves(plan: IvfPqPlan, store: Datastore, options: IndexOptions) -> bool:
    """Return whether the options that are given match the plan of an existing index."""
    segment_references(store)
    rows = plan.trained_rows
    nlist = plan.nlist if options.nlist is None else choose_nlist(rows, options.nlist)[0]
    if nlist < plan.nlist <= (options.nlist or 0):  # more than can be trained now, but no more than asked
        nlist = plan.nlist
    rotation = options.rotation or plan.rotation
    asked = replace(
        plan,
        nlist=nlist,
        rotation=rotation,
        pq_bytes=choose_pq_bytes(_coded_dimension(plan.dimension, rotation), options.pq_bytes or plan.pq_bytes),
        train_rows=choose_train_rows(rows, nlist, options.train_sample or plan.train_rows),
        nprobe=choose_nprobe(rows, nlist, options.nprobe or plan.nprobe),
        seed=options.seed,
    )
    return asked == plan


def _coded_dimension(dimension: int, rotation: str | None) -> int:
    return dimension if rotation is None else parse_rotation(rotation, dimension)[1]


def index_size(segments: Sequence[Segment]) -> IndexSize:
    """Return the size of the lists of some segments."""
    first = segments[0]
    references = [segment_reference(segment) for segment in segments]
    return IndexSize(
        rows=sum(segment.rows for segment in segments),
        dimension=first.dimension,
        key_bytes=first.dimension * first.codec.stored.itemsize,
        value_bytes=max(segment.plan.value_dtype.itemsize for segment in segments),
        row_bytes=max(reference.row_dtype.itemsize for reference in references),
        chunk_rows=max(reference.chunk_rows for reference in references),
        chunks=sum(segment.chunks for segment in segments),
    )
