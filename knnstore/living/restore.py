"""``knnstore restore``: return to an earlier state, as a new state, unless there was a compaction since."""

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
    """The store has the documents of state ``to`` again, as state ``state``; ``rows``: the keys that can be found.

    ``unindexed``: keys to be added to the index.
    """

    store: Path
    to: int
    state: int
    rows: int
    unindexed: int


def restore(root: Path, to: int | None = None) -> RestoreReport:
    """Restore the documents of an earlier state, by default of the last state with other documents.

    The present index is kept, since earlier ones aren't. Nothing changes if the store already has these documents, as
    after an interruption; without ``to``, if the last change of documents was a restore. Raises UsageError for a state
    that can't be restored.
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
            f"{store.root} has no earlier state with other documents: a compaction discards earlier states"
        )
    known = ", ".join(str(state.state) for state in reach)
    raise UsageError(f"{store.root} can't return to state {to}: the states since the last compaction are {known}")


def _restored(reachable: list[Change]) -> int | None:
    """Return the state that the last change of documents returned to if it was a restore, else None."""
    for earlier, change in reversed(list(pairwise(reachable))):
        if _documents(earlier.state) != _documents(change.state):
            return int(change.facts["to"]) if change.kind == "restore" else None
    return None


def _documents(state: Manifest) -> tuple[tuple[str, ...], str | None]:
    """Return what identifies the documents of a state."""
    return state.segments, state.removed


def _indexed(store: Datastore, present: tuple[str, ...]) -> tuple[str, ...]:
    """Return the segments with intact lists: those in use, and those whose files all match their records."""
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
