"""Make a new store from documents of others: copy them, publish the store, and carry over the index of one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from knnstore.datastore.discarding import open_store, other_store
from knnstore.datastore.edits import Edit, editing
from knnstore.datastore.history import TAKEDOWN
from knnstore.datastore.layout import INDEX, SEGMENTS, index_root, segment_root
from knnstore.datastore.origins import COPY_FOLDER, KeptDocuments
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import state_bytes
from knnstore.datastore.takedowns import load_takedowns, save_takedown
from knnstore.diskspace import bytes_below, require_room
from knnstore.errors import MismatchError, UsageError
from knnstore.files import storage_errors
from knnstore.indexes.registry import open_index, type_of
from knnstore.indexing.checking import check_lists
from knnstore.indexing.job import IndexReport, describe_index
from knnstore.living.segments import copied_plan, copy_segment
from knnstore.scheduling import Job
from knnstore.wording import option

_FEWEST_A_LIST = 8  # keys per list; with fewer, a query would probe more lists than it reads keys in each


@dataclass(frozen=True, slots=True)
class DeriveReport:
    """The contents of a store that was made from others. ``doubles``: documents left out because another store of the
    merge has them. ``index``: the index that was carried over, None if there was no suitable one.
    """

    store: Path
    documents: int
    rows: int
    heldout_documents: int
    heldout_tokens: int
    doubles: int
    bytes: int
    index: IndexReport | None


@dataclass(frozen=True, slots=True)
class Target:
    """The store to make at ``root``: the command ``kind``, its contents ``what`` in words, the ``stores`` to read.

    ``overwrite``: discard its present contents.
    """

    kind: str
    what: str
    stores: Sequence[Datastore]
    root: Path
    overwrite: bool


def derive(target: Target, sources: list[KeptDocuments], job: Job, *, doubles: int) -> DeriveReport:
    """Make the target from the sources, or continue it. Raises what ``merge`` and ``subset`` raise."""
    into = target.root
    if into.resolve() in {store.root.resolve() for store in target.stores}:
        remedy = "give the new one a name of its own"
        raise UsageError.about("into", str(into), "is one of the stores to be read", remedy=remedy)
    sources = [source for source in sources if len(source.documents)]
    rows = sum(int(source.tokens.sum()) for source in sources)
    if not rows:
        raise UsageError(f"nothing to make {into} from: {target.what} has no stored documents left")
    plan = copied_plan(sources)
    base = _index_to_carry(target.stores, rows)
    with storage_errors("make", into):
        into.mkdir(parents=True, exist_ok=True)
    with editing(into) as edit:
        open_store(edit, plan.model, plan.key, parameter="into", overwrite=target.overwrite)
        job.runner.require_shared(into, [store.root.absolute() for store in target.stores])
        present = edit.state
        finished = [Segment(segment_root(into, name)) for name in present.segments]
        if finished and [segment.plan for segment in finished] != [plan]:
            raise MismatchError(f"{into} holds something else: {other_store('into')}")
        if not finished:
            _require_room(into, sources, rows, base)
            finished = [copy_segment(edit, sources, job)]
            _publish(edit, target, finished[0])
        # the index can be carried over as long as the origin of each document is known
        if base is not None and present.index is None and (finished[0].root / COPY_FOLDER).exists():
            _carry(edit, base, sources, job)
        edit.give_up(COPY_FOLDER, INDEX)
        edit.sweep()
        return _report(edit.store, doubles)


def _publish(edit: Edit, target: Target, segment: Segment) -> None:
    state, documents = replace(edit.state, segments=(segment.root.name,)), len(segment.documents)
    what = f"{documents:,} documents, {segment.rows:,} keys of {target.what}"
    facts: dict[str, int | str] = {"documents": documents, "keys": segment.rows}
    takedowns = np.concatenate([load_takedowns(store.root) for store in target.stores])
    if len(takedowns):
        facts[TAKEDOWN] = save_takedown(target.root, state, takedowns)
    edit.publish(state, target.kind, what, **facts)


def _index_to_carry(stores: Sequence[Datastore], rows: int) -> Datastore | None:
    """Return the store with the most indexed keys, or None if its index has too many lists for ``rows`` keys."""

    def indexed(store: Datastore) -> int:
        return sum(segment.rows for segment in store.segments if segment.root.name in store.manifest.indexed)

    best = max(stores, key=indexed)
    if not indexed(best) or best.manifest.index is None:
        return None
    nlist = open_index(best.root, best.manifest.index).plan.nlist
    return best if rows >= _FEWEST_A_LIST * nlist else None


def _carry(edit: Edit, base: Datastore, sources: Sequence[KeptDocuments], job: Job) -> None:
    """Carry the index of ``base`` over to the new store, as a state of its own."""
    store = edit.store
    (segment,) = store.segments
    carried = open_index(base.root, str(base.manifest.index))
    folder = type_of(carried).carry(base, edit, segment, sources, job)
    if folder is None:
        return
    check_lists(folder, store, segment, job)
    state = replace(store.manifest, index=folder.name, indexed=(segment.root.name,))
    what = f"carry over the {folder.plan.nlist:,} lists of {base.name}"
    edit.publish(state, "index", what, keys=segment.rows, index=folder.name)


def _report(store: Datastore, doubles: int) -> DeriveReport:
    (segment,) = store.segments
    table, name = segment.documents, store.manifest.index
    heldout = table.heldout()
    folder = None if name is None else open_index(store.root, name)
    return DeriveReport(
        store.root,
        len(table),
        table.rows,
        len(heldout),
        int(table.heldout_tokens[heldout].sum()),
        doubles,
        state_bytes(store.root, store.manifest),
        None if folder is None else describe_index(store, folder),
    )


def _require_room(into: Path, sources: Sequence[KeptDocuments], rows: int, base: Datastore | None) -> None:
    total = sum(bytes_below(source.segment.root) for source in sources)
    available = sum(source.segment.rows for source in sources)
    if base is not None and base.manifest.index is not None:  # lists are written twice: as runs, then merged
        lists = bytes_below(index_root(base.root, base.manifest.index))
        total += 2 * int(lists * available / max(1, base.rows))
    needed = int(total * rows / max(1, available)) - bytes_below(into / SEGMENTS)
    require_room(into, needed, f"{rows:,} keys", f"choose another place with {option('into')}")
