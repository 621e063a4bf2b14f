"""The index command's work: plan, train, fill, merge, check, publish. Resumable at every step.

Quantisers are trained once. Segments that are added later are filled into lists of their own under the same ones, so
that it costs what is new; how much worse the quantisers suit the new keys is measured, and said.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from knnstore.build.dropping import drop_keys
from knnstore.build.lists import check_lists, fill_lists
from knnstore.build.plan import IndexOptions, Work, plan_work, sentences
from knnstore.datastore.edits import Edit, editing
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.store import INDEX, Datastore
from knnstore.datastore.sweeping import bytes_below
from knnstore.diskspace import require_room, telling_need
from knnstore.errors import UsageError
from knnstore.files import path_of, remove_folder
from knnstore.index.adopting import own_index
from knnstore.index.ivfpq.merge import OFFSETS
from knnstore.index.ivfpq.quantiser import TASK, load_training_errors, save_quantiser
from knnstore.index.ivfpq.sample import load_sample, sample_stage
from knnstore.index.ivfpq.train import train
from knnstore.index.plan import Check, IndexFolder, IndexPlan, load_check, open_index, segment_reference
from knnstore.scheduling import Job
from knnstore.wording import command, option

DRIFT_DUE = 1.25
"""Quantisation error of later keys, by that of unseen keys at the training, from which on training anew pays."""
GROWTH_DUE = 8.0
"""Keys, by those trained on, from which on there are too few lists."""


@dataclass(frozen=True, slots=True)
class IndexReport:
    """A finished index of ``rows`` keys, ``new_rows`` of them added by this run.

    ``drift``: quantisation error of the keys that were added after the training, by that of keys of the sample that
    weren't trained on either; None where none were added. ``built`` is False where nothing was left to do.
    ``dropped``: keys whose copy in corpus order this run gave up, and ``freed`` the bytes that left the disk by that;
    what readers have open goes when they end.
    """

    name: str
    plan: IndexPlan
    check: Check
    bytes: int
    rows: int
    new_rows: int
    drift: float | None
    built: bool
    dropped: int = 0
    freed: int = 0


def build_index(store: Datastore, options: IndexOptions, job: Job) -> IndexReport:
    """Index all the store's keys that aren't yet, or go on with a build that was interrupted, and publish the result.

    The bytes on disk depend on the keys and the options alone, not on memory, workers or interruptions. ``store`` is
    let go of: to search the index, open the store again.

    Raises UsageError, ResourceError (before any work, if memory or disk can't do), LockedError, CorruptStoreError.
    """
    store.close()
    say = job.reporter.say
    with editing(store.root, say) as edit:
        job.runner.require_shared(store.root, [])
        store = edit.store  # as it is now that nobody else can change it
        work = plan_work(store, options, job)
        folder, plan = work.folder, work.folder.plan
        if options.overwrite and store.manifest.index == folder.name:
            _require_other_keys(store)
            edit.publish(replace(store.manifest, index=None, indexed=()), "index", "discard the index")
            store = edit.store
        if options.overwrite:
            remove_folder(folder.root)
        elif not work.new and store.manifest.index == folder.name:
            say("          the index is finished already")
            return _finish(edit, folder, options, job)
        else:
            folder = own_index(edit, folder)
            begun = store.manifest.index != work.folder.name
            if begun and (damaged := folder.commits.damaged()):
                say(f"          {damaged[TASK]}: what an earlier run left of this index is removed")
                remove_folder(folder.root)
        for sentence in sentences(store, work, options):
            say(sentence)
        _prepare(store, replace(work, folder=folder))
        with telling_need("What is left of the index", lambda: work.room):
            _train(folder, store, job)
            for segment in work.new:
                fill_lists(folder, store.root, segment, work.resources.run_chunks, job)
                check_lists(folder, store, segment, job)
        names = tuple(segment.root.name for segment in store.segments)
        done = replace(store.manifest, index=folder.name, indexed=names)
        what = f"index {work.rows:,} keys in {plan.nlist:,} lists"
        edit.publish(done, "index", what, keys=work.rows, index=folder.name)
        return replace(_finish(edit, folder, options, job), new_rows=work.rows, built=True)


def _finish(edit: Edit, folder: IndexFolder, options: IndexOptions, job: Job) -> IndexReport:
    """Drop the keys that aren't wanted any longer, clean up, and say what the published index is."""
    store = edit.store
    dropped = drop_keys(edit, job.reporter) if options.drop_keys else 0
    edit.give_up(INDEX)
    freed = edit.sweep().bytes
    return replace(describe_index(store, folder), dropped=dropped, freed=freed if dropped else 0)


def _require_other_keys(store: Datastore) -> None:
    """Raise UsageError where the index that is to be built anew holds the only keys that it could be built from."""
    if store.manifest.dropped:
        raise UsageError(
            f"{option('overwrite', True)} would remove the lists that hold the only keys of {store.root}, and make the "
            f"very same: give another {option('nlist')}, {option('pq_bytes')} or {option('seed')}; for what is damaged "
            f"see {command('repair')}"
        )


def _prepare(store: Datastore, work: Work) -> None:
    """Make the folders, drop what a killed run left half-written, and see that the disk will do."""
    folder = work.folder
    instead = f"lower {option('pq_bytes')}"
    require_room(store.root, work.room, "the lists of the index and the runs that they are made of", instead)
    folder.begin()


@dataclass(frozen=True, slots=True)
class TrainTask:
    """Train the quantisers of an index, named as in its store, on a sample in so many ``parts``."""

    store: str
    index: str
    parts: int


def train_quantiser(task: TrainTask, advance: Callable[[float], None]) -> None:
    """Read the sample, train and save; ``advance`` is told of keys read and trained on."""
    store = Datastore(root := path_of(task.store), load_manifest(root))
    folder = open_index(store.root, task.index)
    sample = load_sample(store, folder, task.parts, advance)
    save_quantiser(folder, *train(sample, folder.plan, advance))


def _train(folder: IndexFolder, store: Datastore, job: Job) -> None:
    """Train on one worker from a sample that all of them gather."""
    if folder.commits.find(TASK):
        return
    sample = sample_stage(store, folder)
    sample.part.prepare()
    sample.resume(job)
    with job.reporter.bar("train", 2 * folder.plan.train_rows, "keys") as advance:
        task = TrainTask(str(store.root.absolute()), folder.name, len(sample.tasks))
        job.runner.run_alone(train_quantiser, task, advance)
    remove_folder(sample.part.root)


def describe_index(store: Datastore, folder: IndexFolder) -> IndexReport:
    """What a finished index of all the store's keys is."""
    references = [segment_reference(segment) for segment in store.segments if segment.rows]
    return IndexReport(
        name=folder.name,
        plan=folder.plan,
        check=load_check(folder, references),
        bytes=bytes_below(folder.root),
        rows=store.rows,
        new_rows=0,
        drift=_drift(folder, store),
        built=False,
    )


def _drift(folder: IndexFolder, store: Datastore) -> float | None:
    references = [segment_reference(segment) for segment in store.segments if segment.rows]
    later = [reference for reference in references if reference not in folder.plan.trained_on]
    if not later:
        return None
    errors = [float(folder.list_commits(reference).require(OFFSETS).number("error")) for reference in later]
    expected = load_training_errors(folder).expected
    mean = sum(e * r.rows for e, r in zip(errors, later, strict=True)) / sum(r.rows for r in later)
    return round(mean / expected, 4) if expected else None
