"""The lists of one segment under quantisers that are there: fill, merge, check."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.commits import CommitLog
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import remove_tree
from knnstore.errors import CorruptStoreError, OutOfMemoryError
from knnstore.files import write_json
from knnstore.index.check import self_check
from knnstore.index.ivfpq.fill import fill_stage, run_layout
from knnstore.index.ivfpq.merge import create_lists, merge_stage
from knnstore.index.ivfpq.search import Searcher
from knnstore.index.plan import CHECK, CHECK_FILE, CHECKED_NEIGHBOURS, IndexFolder, SegmentReference, segment_reference
from knnstore.planning import BASE_BYTES
from knnstore.records import to_json
from knnstore.scheduling import Job, Stage

_ATTEMPTS = 3  # to write runs that can be read back


def fill_lists(folder: IndexFolder, store: Path, segment: Segment, run_chunks: int, job: Job) -> None:
    """Make a segment's lists from its keys: assign, encode, sort and merge those tasks that aren't done."""
    reference = segment_reference(segment)
    if not begin_lists(folder, store, reference, job):
        return
    while True:
        run_chunks = run_layout(folder, reference, run_chunks)
        fill = fill_stage(store, folder, segment, reference, run_chunks=run_chunks)
        try:
            make_runs(fill, job)
            break
        except OutOfMemoryError as error:
            if run_chunks == 1:
                raise
            run_chunks = -(-run_chunks // 2)
            job.reporter.say(f"          {error}. Once more in runs of {run_chunks} chunks")
    merge_runs(folder, store, segment, fill, job)


def begin_lists(folder: IndexFolder, store: Path, reference: SegmentReference, job: Job) -> bool:
    """Begin a segment's lists, or resume them; return whether any are missing.

    What an earlier run left is removed if some of it is damaged or is another segment's: all of it, since lists
    that were carried over can't be completed by lists that are filled from the keys. What the runs hold is verified
    when they are read back.
    """
    lists, runs = folder.list_commits(reference), folder.run_commits(reference)
    if damaged := lists.damaged() | runs.damaged(contents=False):
        problem = next(iter(damaged.values()))
        job.reporter.say(f"          {problem}: the lists of segment {reference.name} are made again")
        remove_tree(lists.root)
        remove_tree(runs.root)
    return bool(merge_stage(store, folder, reference, ()).missing)


def make_runs(stage: Stage[Any], job: Job) -> None:
    """Run a stage that makes runs, and read all runs once: one that isn't what was written is made anew.

    A run may have lain on the disk for days when it is merged, and what is merged gets a checksum that is right.
    """
    commits = stage.part
    log = CommitLog(commits.folder.absolute(), commits.root.absolute(), commits.fingerprint)
    for _ in range(_ATTEMPTS):
        stage.resume(job)
        checks, damages = [RunCheck(log, task.name, task.rows) for task in stage.tasks], list[str]()
        with job.reporter.bar("read back", stage.rows, "keys") as advance:
            for check, damage in job.runner.run(run_damage, checks):
                advance(check.rows)
                if damage:
                    damages.append(damage)
                    commits.forget(check.run)
        if not damages:
            return
        job.reporter.say(f"          {damages[0]}: {len(damages)} of {len(checks)} runs are made anew")
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


def merge_runs(folder: IndexFolder, store: Path, segment: Segment, stage: Stage[Any], job: Job) -> None:
    """Merge the runs that a stage has made into a segment's lists."""
    reference, runs = segment_reference(segment), tuple(task.name for task in stage.tasks)
    folder.list_commits(reference).prepare()
    create_lists(folder, segment, reference, runs)
    merge_stage(store, folder, reference, runs).resume(job)


def check_lists(folder: IndexFolder, store: Datastore, segment: Segment, job: Job) -> None:
    """Measure the recall within a segment's lists, by its own held-out queries or else the store's."""
    commits = folder.list_commits(segment_reference(segment))
    if commits.find(CHECK):
        return
    held_out = segment.queries()
    if not len(held_out):
        held_out = np.concatenate([other.queries() for other in store.segments])
    with job.reporter.bar("check", 1, "check") as advance:
        alone = store.only(segment.root.name)
        k = max(1, round(min(CHECKED_NEIGHBOURS, store.rows) * segment.rows / store.rows))
        check = self_check(alone, Searcher(alone, folder), held_out, k, max(2**28, job.memory - BASE_BYTES))
        path = folder.lists(segment.root.name, CHECK_FILE)
        write_json(path, to_json(check))
        commits.commit(CHECK, [path])
        advance(1)
