"""``knnstore restore``: back to an earlier state, as a new one, as long as no compaction lies between."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from knnstore.datastore.edits import editing
from knnstore.datastore.history import Change, changes, within_reach
from knnstore.datastore.manifest import Manifest
from knnstore.datastore.store import Datastore, with_segments
from knnstore.errors import UsageError
from knnstore.indexes.plan import CHECK, segment_reference
from knnstore.indexes.registry import open_index


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """The store has the documents of state ``to`` again, as state ``state``; ``rows`` of them can be found.

    ``unindexed``: keys that the index has to be told of.
    """

    store: Path
    to: int
    state: int
    rows: int
    unindexed: int


def restore(root: Path, to: int | None = None) -> RestoreReport:
    """Give the store the documents of an earlier state, by default of the last that had others.

    The index is the present one: an earlier one isn't kept. Nothing changes if the documents are the present ones, as
    after an interruption: without ``to``, if the last change of documents was a restore. Raises UsageError for a state
    that is out of reach.
    """
    with editing(root) as edit:
        store = edit.store
        wanted = _wanted(store, to)
        bare = replace(store.manifest, removed=wanted.removed)
        indexed = _indexed(store.at(with_segments(bare, wanted.segments, ())), store.manifest.indexed)
        state = with_segments(bare, wanted.segments, indexed)
        restored = store.at(state)
        rows, what = restored.live_rows, f"return to state {wanted.state}"
        unindexed = sum(segment.rows for segment in restored.segments if segment.root.name not in state.indexed)
        if _documents(wanted) != _documents(store.manifest):
            state = edit.publish(state, "restore", what, to=wanted.state)
        return RestoreReport(root, wanted.state, state.state, rows, unindexed)


def _wanted(store: Datastore, to: int | None) -> Manifest:
    present = store.manifest
    reachable = [change for change in within_reach(changes(store.root)) if change.state.segments]
    reach = [change.state for change in reachable]
    if to is None:
        to = _restored(reachable)
    for state in reversed(reach):
        if state.state == to or (to is None and _documents(state) != _documents(present)):
            return state
    if to is None:
        raise UsageError(
            f"{store.root} has no earlier state with other documents: a compaction forgets what was before"
        )
    known = ", ".join(str(state.state) for state in reach)
    raise UsageError(f"{store.root} can't return to state {to}: those since the last compaction are {known}")


def _restored(reachable: list[Change]) -> int | None:
    """The state that the last change of documents returned to, if it was a restore."""
    for earlier, change in reversed(list(pairwise(reachable))):
        if _documents(earlier.state) != _documents(change.state):
            return int(change.facts["to"]) if change.kind == "restore" else None
    return None


def _documents(state: Manifest) -> tuple[tuple[str, ...], str | None]:
    """What says which documents a state has."""
    return state.segments, state.removed


def _indexed(store: Datastore, present: tuple[str, ...]) -> tuple[str, ...]:
    """The segments whose lists are whole: those that are in use, and those whose files are all what was recorded."""
    if store.manifest.index is None:
        return ()
    folder = open_index(store.root, store.manifest.index)
    return tuple(
        segment.root.name
        for segment in store.segments
        if not segment.rows
        or segment.root.name in present
        or (not (log := folder.list_commits(segment_reference(segment))).damaged() and log.find(CHECK))
    )
