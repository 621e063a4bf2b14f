"""``knnstore remove``: hide documents from all searches at once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from knnstore.datastore.edits import editing
from knnstore.datastore.history import TAKEDOWN, changes
from knnstore.datastore.removed import Removed, joined, save_removed, without
from knnstore.datastore.selection import matching, origins_of
from knnstore.datastore.store import Datastore
from knnstore.datastore.takedowns import save_takedown
from knnstore.errors import UsageError
from knnstore.files import encode_json

_ASKED = "asked"
"""Key in a removal's facts: a digest of its patterns, which recognises a repetition after a compaction."""


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """What was removed, or would be: ``names`` of ``documents``, their ``rows`` and held-out tokens.

    ``state``: the number of the store's state without them, None if nothing was done.
    """

    store: Path
    documents: int
    names: tuple[str, ...]
    rows: int
    heldout_tokens: int
    state: int | None


def plan_removal(store: Datastore, patterns: Sequence[str]) -> RemoveReport:
    """Return what the patterns match, without a change. Raises UsageError for a pattern that matches nothing."""
    return _report(store, matching(store, patterns, "document"))


def remove(root: Path, patterns: Sequence[str], note: str = "") -> RemoveReport:
    """Remove the documents that match any of the patterns. Once this returns, no search finds them.

    Their bytes stay on disk until a compaction. The record keeps ``note``, a digest of the patterns, and the digests of
    the texts, so that no later ingest adds them again, but neither texts nor names. Repeating a removal, as after an
    interruption, changes nothing. Raises UsageError for a pattern that matches nothing and wasn't removed before.
    """
    with editing(root) as edit:
        store = edit.store
        try:
            every = matching(store.at(replace(store.manifest, removed=None)), patterns, "document")
        except UsageError:
            if not _was_done(root, patterns):
                raise
            return replace(_report(store, {}), state=store.manifest.state)  # already deleted from disk
        matches = without(every, store.removed)
        if not matches:
            return replace(_report(store, every), state=store.manifest.state)
        report = _report(store, matches)
        digests = np.concatenate(
            [s.documents.sha256[matches[s.root.name]] for s in store.segments if s.root.name in matches]
        )
        takedown = save_takedown(root, store.manifest, digests)
        state = replace(store.manifest, removed=save_removed(root, joined(store.removed, matches), edit.epoch))
        what = f"remove {report.documents:,} document{'' if report.documents == 1 else 's'}, {report.rows:,} keys"
        facts: dict[str, int | str] = {
            "documents": report.documents,
            "keys": report.rows,
            "heldout_tokens": report.heldout_tokens,
        }
        facts |= {TAKEDOWN: takedown, _ASKED: _digest(takedown, patterns)}
        state = edit.publish(state, "remove", f"{what}: {note}" if note else what, **facts)
        return replace(report, state=state.state)


def _was_done(root: Path, patterns: Sequence[str]) -> bool:
    """Return whether the log has a removal with the same patterns."""
    return any(_ASKED in c.facts and c.facts[_ASKED] == _digest(c.facts[TAKEDOWN], patterns) for c in changes(root))


def _digest(takedown: str, patterns: Sequence[str]) -> str:
    """Return the digest of a removal's patterns, salted with its takedown."""
    return hashlib.sha256(encode_json([takedown, sorted(patterns)])).hexdigest()


def _report(store: Datastore, documents: Removed) -> RemoveReport:
    rows = heldout = 0
    for segment in store.segments:
        numbers = documents.get(segment.root.name, np.empty(0, np.int64))
        rows += int(segment.documents.tokens[numbers].sum())
        heldout += int(segment.documents.heldout_tokens[numbers].sum())
    names = tuple(str(document) for document in origins_of(store, documents))
    return RemoveReport(store.root, len(names), names, rows, heldout, None)
