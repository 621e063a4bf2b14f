"""The index command's work: plan, train, fill, check, publish. Resumable at every step.

An index is trained once. Segments that are added later are filled into lists of their own under the same ones, so
that it costs what is new; how much worse the quantisers suit the new keys is measured, and said.
"""

from dataclasses import dataclass, replace
from typing import Any

from knnstore.datastore.edits import Edit, editing
from knnstore.datastore.layout import INDEX
from knnstore.datastore.store import Datastore
from knnstore.diskspace import bytes_below, require_room, telling_need
from knnstore.errors import UsageError
from knnstore.files import remove_folder
from knnstore.indexes.adopting import own_index
from knnstore.indexes.plan import Check, IndexFolder, IndexPlan, load_check, segment_reference
from knnstore.indexes.registry import type_of
from knnstore.indexes.work import IndexOptions, Work
from knnstore.indexing.checking import check_lists
from knnstore.indexing.dropping import drop_keys
from knnstore.indexing.plan import plan_work, sentences
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
        folder, plan, kind = work.folder, work.folder.plan, type_of(work.folder)
        if options.drop_keys and not kind.holds_keys:
            raise UsageError(f"an index of type {plan.kind} holds no copy of the keys, so they can't be dropped")
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
                say(f"          {next(iter(damaged.values()))}: what an earlier run left of this index is removed")
                remove_folder(folder.root)
        for sentence in sentences(store, work, options):
            say(sentence)
        _prepare(store, replace(work, folder=folder))
        with telling_need("What is left of the index", lambda: work.room):
            kind.train(folder, store, job)
            for segment in work.new:
                kind.fill(folder, segment, work.resources, job)
                check_lists(folder, store, segment, job)
        names = tuple(segment.root.name for segment in store.segments)
        done = replace(store.manifest, index=folder.name, indexed=names)
        what = f"index {work.rows:,} keys in {plan.nlist:,} lists"
        edit.publish(done, "index", what, keys=work.rows, index=folder.name)
        return replace(_finish(edit, folder, options, job), new_rows=work.rows, built=True)


def _finish(edit: Edit, folder: IndexFolder[Any], options: IndexOptions, job: Job) -> IndexReport:
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


def describe_index(store: Datastore, folder: IndexFolder[Any]) -> IndexReport:
    """What a finished index of all the store's keys is."""
    references = [segment_reference(segment) for segment in store.segments if segment.rows]
    return IndexReport(
        name=folder.name,
        plan=folder.plan,
        check=load_check(folder, references),
        bytes=bytes_below(folder.root),
        rows=store.rows,
        new_rows=0,
        drift=type_of(folder).drift(folder, references),
        built=False,
    )
