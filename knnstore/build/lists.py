"""The lists of one segment under quantisers that are there: fill, merge, check."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from knnstore.datastore.commits import CommitLog
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import remove_tree
from knnstore.errors import CorruptStoreError, OutOfMemoryError
from knnstore.files import write_json
from knnstore.index.check import self_check
from knnstore.index.ivfpq.fill import fill_run, fill_tasks, run_layout
from knnstore.index.ivfpq.merge import OFFSETS, create_lists, merge_chunk, merge_tasks
from knnstore.index.ivfpq.search import Searcher
from knnstore.index.plan import CHECK, CHECK_FILE, CHECKED_NEIGHBOURS, IndexFolder, SegmentReference, segment_reference
from knnstore.planning import BASE_BYTES
from knnstore.progress import Reporter
from knnstore.records import to_json
from knnstore.scheduling import Runner

_ATTEMPTS = 3  # to write runs that can be read back


class RowsTask(Protocol):
    """A task with a name for its commit and a number of rows for the progress bar."""

    @property
    def name(self) -> str:
        """Of the commit."""
        ...

    @property
    def rows(self) -> int:
        """That it does."""
        ...


Task = TypeVar("Task", bound=RowsTask)


def fill_lists(
    folder: IndexFolder, store: Path, segment: Segment, run_chunks: int, *, runner: Runner, reporter: Reporter
) -> None:
    """Make a segment's lists from its keys: assign, encode, sort and merge those tasks that aren't done."""
    reference = segment_reference(segment)
    discard_unusable_lists(folder, reference, reporter)
    commits = folder.list_commits(reference)
    names = [OFFSETS, *(task.name for task in merge_tasks(store, folder, reference, ()))]
    if len(commits.find_all(names)) == len(names):
        return
    while True:
        run_chunks = run_layout(folder, reference, run_chunks)
        fills = fill_tasks(store, folder, segment, reference, run_chunks=run_chunks)
        try:
            make_runs(folder.run_commits(reference), fills, fill_run, stage="fill", runner=runner, reporter=reporter)
            break
        except OutOfMemoryError as error:
            if run_chunks == 1:
                raise
            run_chunks = -(-run_chunks // 2)
            reporter.say(f"          {error}. Once more in runs of {run_chunks} chunks")
    merge_runs(folder, store, segment, tuple(task.name for task in fills), runner=runner, reporter=reporter)


def discard_unusable_lists(folder: IndexFolder, reference: SegmentReference, reporter: Reporter) -> None:
    """Remove what an earlier run left of a segment's lists if some of it is damaged, or is another segment's.

    All of it, since lists that were carried over can't be completed by lists that are filled from the keys. What the
    runs hold is verified when they are read back.
    """
    lists, runs = folder.list_commits(reference), folder.run_commits(reference)
    if damaged := lists.damaged() | runs.damaged(contents=False):
        problem = next(iter(damaged.values()))
        reporter.say(f"          {problem}: the lists of segment {reference.name} are made again")
        remove_tree(lists.root)
        remove_tree(runs.root)


def make_runs(
    commits: CommitLog,
    tasks: list[Task],
    function: Callable[[Task], int],
    *,
    stage: str,
    runner: Runner,
    reporter: Reporter,
) -> None:
    """Run the tasks that make runs, and read all runs once: one that isn't what was written is made anew.

    A run may have lain on the disk for days when it is merged, and what is merged gets a checksum that is right.
    """
    log = CommitLog(commits.folder.absolute(), commits.root.absolute(), commits.fingerprint)
    for _ in range(_ATTEMPTS):
        run_tasks(commits, tasks, function, stage=stage, runner=runner, reporter=reporter)
        damages: list[str] = []
        with reporter.bar("read back", sum(task.rows for task in tasks), "keys") as advance:
            for check, damage in runner.run(run_damage, [RunCheck(log, task.name, task.rows) for task in tasks]):
                advance(check.rows)
                if damage:
                    damages.append(damage)
                    commits.forget(check.run)
        if not damages:
            return
        reporter.say(f"          {damages[0]}: {len(damages)} of {len(tasks)} runs are made anew")
    raise CorruptStoreError(f"{damages[0]}, for the {_ATTEMPTS}rd time: the disk doesn't keep what is written to it")


@dataclass(frozen=True, slots=True)
class RunCheck:
    """Read the run of that name once."""

    log: CommitLog
    run: str
    rows: int

    @property
    def name(self) -> str:
        """For people."""
        return f"check-{self.run}"


def run_damage(check: RunCheck) -> tuple[RunCheck, str | None]:
    """The check, and what is wrong with the bytes of the run's files, in words, or None."""
    return check, check.log.damage(check.run)


def merge_runs(
    folder: IndexFolder, store: Path, segment: Segment, runs: tuple[str, ...], *, runner: Runner, reporter: Reporter
) -> None:
    """Merge a segment's finished runs into its lists."""
    reference = segment_reference(segment)
    folder.list_commits(reference).prepare()
    create_lists(folder, segment, reference, runs)
    tasks = merge_tasks(store, folder, reference, runs)
    run_tasks(folder.list_commits(reference), tasks, merge_chunk, stage="merge", runner=runner, reporter=reporter)


def check_lists(folder: IndexFolder, store: Datastore, segment: Segment, memory: int, reporter: Reporter) -> None:
    """Measure the recall within a segment's lists, by its own held-out queries or else the store's."""
    commits = folder.list_commits(segment_reference(segment))
    if commits.find(CHECK):
        return
    held_out = segment.queries()
    if not len(held_out):
        held_out = np.concatenate([other.queries() for other in store.segments])
    with reporter.bar("check", 1, "check") as advance:
        alone = store.only(segment.root.name)
        k = max(1, round(min(CHECKED_NEIGHBOURS, store.rows) * segment.rows / store.rows))
        check = self_check(alone, Searcher(alone, folder), held_out, k, max(2**28, memory - BASE_BYTES))
        path = folder.lists(segment.root.name, CHECK_FILE)
        write_json(path, to_json(check))
        commits.commit(CHECK, [path])
        advance(1)


def run_tasks(
    commits: CommitLog,
    tasks: list[Task],
    function: Callable[[Task], int],
    *,
    stage: str,
    runner: Runner,
    reporter: Reporter,
) -> None:
    """Run those of the tasks that have no commit yet."""
    done = commits.find_all(task.name for task in tasks)
    left = [task for task in tasks if task.name not in done]
    total = sum(task.rows for task in tasks)
    with reporter.bar(stage, total, "keys", total - sum(task.rows for task in left)) as advance:
        for count in runner.run(function, left):
            advance(count)
