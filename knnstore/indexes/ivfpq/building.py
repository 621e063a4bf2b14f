"""Build an IVF-PQ index: the quantisers once, then each segment's lists under them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from knnstore.datastore.commits import CommitLog
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import remove_tree
from knnstore.errors import CorruptStoreError, OutOfMemoryError
from knnstore.files import remove_folder
from knnstore.indexes.ivfpq.fill import fill_stage, run_layout
from knnstore.indexes.ivfpq.merge import OFFSETS, create_lists, merge_stage
from knnstore.indexes.ivfpq.plan import IvfPqFolder
from knnstore.indexes.ivfpq.quantiser import TASK, load_training_errors, save_quantiser
from knnstore.indexes.ivfpq.sample import load_sample, sample_stage
from knnstore.indexes.ivfpq.train import train
from knnstore.indexes.plan import SegmentReference, segment_reference
from knnstore.scheduling import Job, Stage

_ATTEMPTS = 3  # attempts to write runs that can be read back


@dataclass(frozen=True, slots=True)
class TrainTask:
    """Train the quantisers of an index on a sample of ``parts`` parts."""

    folder: IvfPqFolder
    parts: int


def train_quantiser(task: TrainTask, advance: Callable[[float], None]) -> None:
    """Read the sample, train and save; ``advance`` is called with the number of keys read and trained on."""
    folder = task.folder
    store = Datastore(folder.store, load_manifest(folder.store))
    sample = load_sample(store, folder, task.parts, advance)
    save_quantiser(folder, *train(sample, folder.plan, advance))


def train_on_sample(folder: IvfPqFolder, store: Datastore, job: Job) -> None:
    """Train on one worker, with a sample gathered by all workers."""
    if folder.commits.find(TASK):
        return
    sample = sample_stage(store, folder)
    sample.part.prepare()
    sample.resume(job)
    with job.reporter.bar("train", 2 * folder.plan.train_rows, "keys") as advance:
        job.runner.run_alone(train_quantiser, TrainTask(folder.absolute(), len(sample.tasks)), advance)
    remove_folder(sample.part.root)


def fill_lists(folder: IvfPqFolder, segment: Segment, run_chunks: int, job: Job) -> None:
    """Make a segment's lists from its keys: run the unfinished tasks that assign, encode, sort and merge."""
    reference = segment_reference(segment)
    if not begin_lists(folder, reference, job):
        return
    while True:
        run_chunks = run_layout(folder, reference, run_chunks)
        fill = fill_stage(folder, segment, reference, run_chunks)
        try:
            make_runs(fill, job)
            break
        except OutOfMemoryError as error:
            if run_chunks == 1:
                raise
            run_chunks = -(-run_chunks // 2)
            job.reporter.say(f"          {error}. Trying again with runs of {run_chunks} chunks")
    merge_runs(folder, segment, fill, job)


def begin_lists(folder: IvfPqFolder, reference: SegmentReference, job: Job) -> bool:
    """Start or resume a segment's lists; return whether any are missing.

    If anything that an earlier run left is damaged or belongs to another segment, all of it is removed, since lists
    that were carried over can't be completed by lists filled from the keys. The contents of runs are verified when they
    are read back.
    """
    lists, runs = folder.list_commits(reference), folder.run_commits(reference)
    if damaged := lists.damaged() | runs.damaged(contents=False):
        problem = next(iter(damaged.values()))
        job.reporter.say(f"          {problem}: the lists of segment {reference.name} are rebuilt")
        remove_tree(lists.root)
        remove_tree(runs.root)
    return bool(merge_stage(folder, reference, ()).missing)


def make_runs(stage: Stage[Any], job: Job) -> None:
    """Run a stage that makes runs, then read all runs once and make damaged ones again.

    A run may have been on disk for days before it is merged, and merging damaged data would give it a valid checksum.
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
        job.reporter.say(f"          {damages[0]}: {len(damages)} of {len(checks)} runs are made again")
    raise CorruptStoreError(f"{damages[0]}, for the {_ATTEMPTS}rd time: the disk doesn't keep what is written to it")


@dataclass(frozen=True, slots=True)
class RunCheck:
    """Read a run once."""

    log: CommitLog
    run: str
    rows: int

    @property
    def name(self) -> str:
        """Return the name of the task, for people."""
        return f"check-{self.run}"


def run_damage(check: RunCheck) -> tuple[RunCheck, str | None]:
    """Return the check, and a description of the damage to the run's files, or None."""
    return check, check.log.damage(check.run)


def merge_runs(folder: IvfPqFolder, segment: Segment, stage: Stage[Any], job: Job) -> None:
    """Merge the runs that a stage has made into a segment's lists."""
    reference, runs = segment_reference(segment), tuple(task.name for task in stage.tasks)
    folder.list_commits(reference).prepare()
    create_lists(folder, segment, reference, runs)
    merge_stage(folder, reference, runs).resume(job)


def drift(folder: IvfPqFolder, references: Sequence[SegmentReference]) -> float | None:
    """Return the mean quantisation error of segments added after training over the expected error; None without any."""
    later = [reference for reference in references if reference not in folder.plan.trained_on]
    if not later:
        return None
    errors = [float(folder.list_commits(reference).require(OFFSETS).number("error")) for reference in later]
    expected = load_training_errors(folder).expected
    mean = sum(e * r.rows for e, r in zip(errors, later, strict=True)) / sum(r.rows for r in later)
    return round(mean / expected, 4) if expected else None
