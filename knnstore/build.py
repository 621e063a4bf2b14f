"""The index command's work: plan, train, fill, merge, check, publish. Resumable at every step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from knnstore.atomic import TEMPORARY_SUFFIX, free_bytes, storage_errors, write_json
from knnstore.datastore.commits import CommitLog
from knnstore.datastore.locking import writing
from knnstore.datastore.manifest import load_json, load_manifest, save_manifest
from knnstore.datastore.store import Datastore, index_root
from knnstore.errors import ResourceError
from knnstore.index.check import self_check
from knnstore.index.fill import FillTask, fill_run, fill_tasks, run_layout
from knnstore.index.merge import MergeTask, create_lists, merge_chunk, merge_tasks
from knnstore.index.plan import (
    CHECK_FILE,
    FORMAT_VERSION,
    PLAN_FILE,
    Check,
    IndexFolder,
    IndexPlan,
    SegmentReference,
    remove_folder,
    segment_references,
)
from knnstore.index.quantiser import TASK, save_quantiser
from knnstore.index.search import Searcher
from knnstore.index.train import draw_sample, train
from knnstore.planning import (
    BASE_BYTES,
    IndexResources,
    IndexSize,
    choose_cells,
    choose_nlist,
    choose_nprobe,
    choose_pq_bytes,
    choose_train_rows,
    plan_resources,
)
from knnstore.progress import Reporter
from knnstore.records import from_json, to_json
from knnstore.scheduling import Runner
from knnstore.sizes import format_size

_MORE = 1.05  # disk asked for beyond the plan's bytes: metadata, commit records, blocks of the file system
Task = TypeVar("Task", FillTask, MergeTask)


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """What a user may decide; None leaves it to the planner. ``memory`` is for all processes together, in bytes.

    ``workers``: processes that the runner uses besides this one, 0 if it works in this one.
    """

    nlist: int | None = None
    pq_bytes: int | None = None
    train_sample: int | None = None
    nprobe: int | None = None
    seed: int = 0
    memory: int = 4 * 10**9
    workers: int = 0
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class IndexReport:
    """A finished index. ``built`` is False where it had been finished before."""

    name: str
    plan: IndexPlan
    check: Check
    bytes: int
    built: bool


def plan_index(store: Datastore, options: IndexOptions) -> tuple[IndexPlan, IndexResources, list[str]]:
    """What would be built, what it takes, and sentences for a person; nothing is written.

    Raises UsageError for options that don't fit the keys, ResourceError if memory or disk can't do.
    """
    references = segment_references(store)
    first = store.segments[0]
    nlist, note = choose_nlist(store.rows, options.nlist)
    pq_bytes = choose_pq_bytes(first.dimension, options.pq_bytes)
    train_rows = choose_train_rows(store.rows, nlist, options.train_sample)
    plan = IndexPlan(
        version=FORMAT_VERSION,
        nlist=nlist,
        cells=choose_cells(nlist),
        pq_bytes=pq_bytes,
        train_rows=train_rows,
        seed=options.seed,
        nprobe=choose_nprobe(store.rows, nlist, options.nprobe),
        dimension=first.dimension,
        key_dtype=first.plan.key_dtype,
        segments=references,
    )
    resources = plan_resources(
        _size(store, references),
        nlist=nlist,
        pq_bytes=pq_bytes,
        train_rows=train_rows,
        memory=options.memory,
        workers=options.workers,
    )
    chosen = "" if options.nlist else " (chosen from the number of keys)"
    says = [
        f"plan      {store.rows:,} keys of {first.dimension} {plan.key_dtype} into {nlist:,} lists{chosen}, "
        f"codes of {pq_bytes} bytes, trained on {train_rows:,} keys",
        f"          {format_size(resources.disk_bytes)} on disk and {format_size(resources.temporary_bytes)} more "
        f"meanwhile, at most {format_size(resources.peak_bytes)} of memory",
    ]
    return plan, resources, [*says, f"          {note}"] if note else says


def build_index(store: Datastore, options: IndexOptions, runner: Runner, reporter: Reporter) -> IndexReport:
    """Build the index of all the store's keys, or go on with one that was interrupted, and make it the store's.

    The bytes on disk depend on the keys and the options alone, not on memory, workers or interruptions.

    Raises UsageError, ResourceError (before any work, if memory or disk can't do), LockedError, CorruptStoreError.
    """
    plan, resources, sentences = plan_index(store, options)
    folder = IndexFolder(index_root(store.root, plan.name), plan)
    with writing(store.root):
        runner.require_shared(store.root, [])
        if options.overwrite:
            remove_folder(folder.root)
        if load_manifest(store.root).index == plan.name and (folder.root / CHECK_FILE).is_file():
            _clean_up(folder)
            report = _report(folder, built=False)
            reporter.say("          the index is finished already")
            return report
        for sentence in sentences:
            reporter.say(sentence)
        _prepare(folder, store, resources)
        _train(folder, store, reporter)
        _fill_and_merge(folder, store, resources, runner, reporter)
        _check(folder, store, options.memory, reporter)
        save_manifest(store.root, replace(load_manifest(store.root), index=plan.name))
        _clean_up(folder)
    return _report(folder, built=True)


def _size(store: Datastore, references: tuple[SegmentReference, ...]) -> IndexSize:
    first = store.segments[0]
    return IndexSize(
        rows=store.rows,
        dimension=first.dimension,
        key_bytes=first.dimension * first.codec.stored.itemsize,
        value_bytes=max(segment.plan.value_dtype.itemsize for segment in store.segments),
        row_bytes=max(reference.row_dtype.itemsize for reference in references),
        chunk_rows=max(reference.chunk_rows for reference in references),
        chunks=sum(segment.chunks for segment in store.segments),
    )


def _prepare(folder: IndexFolder, store: Datastore, resources: IndexResources) -> None:
    """Make the folders, drop what a killed run left half-written, and see that the disk will do."""
    written = _bytes(folder.root)
    needed = int((resources.disk_bytes + resources.temporary_bytes) * _MORE) - written
    free = free_bytes(store.root)
    if free < needed:
        raise ResourceError(
            f"{store.root}: the index needs {format_size(needed)} more on disk and {format_size(free)} are free: "
            f"make room, or lower --pq-bytes"
        )
    with storage_errors("make", folder.root):
        folder.root.mkdir(parents=True, exist_ok=True)
        for pattern in (f"*{TEMPORARY_SUFFIX}", "*.partial"):
            for leftover in folder.root.rglob(pattern):
                leftover.unlink()
    write_json(folder.root / PLAN_FILE, to_json(folder.plan))
    folder.commits.prepare()


def _train(folder: IndexFolder, store: Datastore, reporter: Reporter) -> None:
    # in this process, whose threads are all free, whatever the runner
    if folder.commits.find(TASK):
        return
    rows = folder.plan.train_rows
    with reporter.bar("sample", rows, "keys") as advance:
        sample = draw_sample(store.segments, rows, folder.plan.seed, advance)
    with reporter.bar("train", rows, "keys") as advance:
        save_quantiser(folder, folder.commits, train(sample, folder.plan, advance))


def _fill_and_merge(
    folder: IndexFolder, store: Datastore, resources: IndexResources, runner: Runner, reporter: Reporter
) -> None:
    merges = [task for reference in folder.plan.segments for task in merge_tasks(store.root, folder, reference, ())]
    if all(folder.commits.find(task.name) for task in merges):
        return
    run_chunks = run_layout(folder, resources.run_chunks)
    fills = {
        segment.root.name: fill_tasks(store.root, folder, segment, reference, run_chunks=run_chunks)
        for segment, reference in zip(store.segments, folder.plan.segments, strict=True)
    }
    every = [task for tasks in fills.values() for task in tasks]
    _run(folder.run_commits, every, fill_run, stage="fill", runner=runner, reporter=reporter)
    merges = []
    for segment, reference in zip(store.segments, folder.plan.segments, strict=True):
        runs = tuple(task.name for task in fills[reference.name])
        create_lists(folder, segment, reference, runs)
        merges += merge_tasks(store.root, folder, reference, runs)
    _run(folder.commits, merges, merge_chunk, stage="merge", runner=runner, reporter=reporter)


def _run(
    commits: CommitLog,
    tasks: list[Task],
    function: Callable[[Task], int],
    *,
    stage: str,
    runner: Runner,
    reporter: Reporter,
) -> None:
    """Run those of the tasks that aren't done."""
    left = [task for task in tasks if commits.find(task.name) is None]
    total = sum(task.rows for task in tasks)
    with reporter.bar(stage, total, "keys", total - sum(task.rows for task in left)) as advance:
        for count in runner.run(function, left):
            advance(count)


def _check(folder: IndexFolder, store: Datastore, memory: int, reporter: Reporter) -> None:
    if folder.commits.find("check"):
        return
    with reporter.bar("check", 1, "check") as advance:
        check = self_check(store, Searcher(store, folder.plan.name), max(2**28, memory - BASE_BYTES))
        path = folder.root / CHECK_FILE
        write_json(path, to_json(check))
        folder.commits.commit("check", [path])
        advance(1)


def _clean_up(folder: IndexFolder) -> None:
    """Remove what the published index doesn't need: its runs, and other indexes."""
    remove_folder(folder.runs)
    for other in folder.root.parent.iterdir():
        if other != folder.root:
            remove_folder(other)


def _report(folder: IndexFolder, *, built: bool) -> IndexReport:
    path = folder.root / CHECK_FILE
    check = from_json(Check, load_json(path), str(path))
    return IndexReport(folder.plan.name, folder.plan, check, _bytes(folder.root), built)


def _bytes(root: Path) -> int:
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
