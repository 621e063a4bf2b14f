"""The index job: plan, train, fill, check and publish. Every step can be resumed.

An index is trained once. Segments added later are filled with the same quantisers, so that the cost is proportional to
the new keys. How much worse the quantisers fit the new keys is measured and reported.
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
"""Quantisation error of later keys relative to that of unseen keys at training, above which retraining pays off."""
GROWTH_DUE = 8.0
"""Number of keys relative to those at training, above which there are too few lists."""


@dataclass(frozen=True, slots=True)
class IndexReport:
    """A finished index of ``rows`` keys, of which this run added ``new_rows``.

    ``drift``: quantisation error of keys added after training, relative to that of sampled keys left out of training;
    None if none were added. ``built``: False if there was nothing to do. ``dropped``: keys whose copy in corpus order
    this run discarded; ``freed``: bytes deleted by that, without files that readers still have open.
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
    """Index all keys that aren't indexed, or resume an interrupted build, and publish the result.

    The bytes on disk depend only on the keys and the options, not on memory, workers or interruptions. Closes
    ``store``: to search the index, open the store again.

    Raises UsageError, ResourceError (before any work, if memory or disk don't suffice), LockedError, CorruptStoreError.
    """
    store.close()
    say = job.reporter.say
    with editing(store.root, say) as edit:
        job.runner.require_shared(store.root, [])
        store = edit.store  # the current state, which nobody else can change now
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
            say("          the index is already finished")
            return _finish(edit, folder, options, job)
        else:
            folder = own_index(edit, folder)
            unpublished = store.manifest.index != work.folder.name
            if unpublished and (damaged := folder.commits.damaged()):
                say(f"          {next(iter(damaged.values()))}: removing this index of an interrupted run")
                remove_folder(folder.root)
        for line in sentences(store, work, options):
            say(line)
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
    """Drop the keys that are no longer needed, clean up, and describe the published index."""
    store = edit.store
    dropped = drop_keys(edit, job.reporter) if options.drop_keys else 0
    edit.give_up(INDEX)
    freed = edit.sweep().bytes
    return replace(describe_index(store, folder), dropped=dropped, freed=freed if dropped else 0)


def _require_other_keys(store: Datastore) -> None:
    """Raise UsageError if the index to be rebuilt holds the only copy of the keys."""
    if store.manifest.dropped:
        raise UsageError(
            f"{option('overwrite', True)} would remove the lists that hold the only keys of {store.root}, and rebuild "
            f"the same ones: give another {option('nlist')}, {option('pq_bytes')} or {option('seed')}; to rebuild "
            f"damaged files, run {command('repair')}"
        )


def _prepare(store: Datastore, work: Work) -> None:
    """Require enough free disk space, create the folders, and remove partial files of a killed run."""
    folder = work.folder
    instead = f"lower {option('pq_bytes')}"
    require_room(store.root, work.room, "the lists of the index and the temporary runs to build them", instead)
    folder.begin()


def describe_index(store: Datastore, folder: IndexFolder[Any]) -> IndexReport:
    """Describe a finished index of all keys of the store."""
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
