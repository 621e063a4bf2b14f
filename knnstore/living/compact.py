"""``knnstore compact``: rewrite all segments as one, and delete the removed documents from disk."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.edits import Edit, editing
from knnstore.datastore.layout import INDEX, SEGMENTS
from knnstore.datastore.manifest import Manifest
from knnstore.datastore.origins import COPY_FOLDER, KeptDocuments
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import state_bytes
from knnstore.diskspace import bytes_below, require_room
from knnstore.indexes.plan import IndexFolder
from knnstore.indexes.registry import open_index, type_of
from knnstore.indexing.checking import check_lists
from knnstore.indexing.dropping import require_listed
from knnstore.living.segments import copy_segment
from knnstore.scheduling import Job
from knnstore.suffix_array.plan import discard_others, suffix_folder

MOST_SEGMENTS = 8
MOST_REMOVED = 0.1
"""Share of removed keys above which ``auto`` compacts."""


@dataclass(frozen=True, slots=True)
class CompactOptions:
    """``auto``: only if there are more than ``most_segments`` segments, or over a tenth of the keys is removed."""

    auto: bool = False
    most_segments: int = MOST_SEGMENTS


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What a compaction did, or would do.

    ``removed_rows`` are deleted permanently. ``bytes``: the size of the present state; ``freed``: the bytes freed on
    disk; ``held``: past states whose files stay until the readers that have them open close them.
    """

    store: Path
    due: bool
    segments: int
    rows: int
    removed_documents: int
    removed_rows: int
    bytes: int
    freed: int
    held: tuple[int, ...]


def plan_compaction(store: Datastore, options: CompactOptions) -> CompactReport:
    """Return what a compaction would do, without writing; ``due``: whether there is anything to do."""
    removed = store.rows - store.live_rows
    documents = sum(map(len, store.removed.values()))
    due = len(store.segments) > 1 or documents > 0
    if options.auto:
        due = len(store.segments) > options.most_segments or removed > MOST_REMOVED * store.rows
    return CompactReport(
        store.root,
        due,
        len(store.segments),
        store.live_rows,
        documents,
        removed,
        state_bytes(store.root, store.manifest),
        0,
        (),
    )


def compact(root: Path, options: CompactOptions, job: Job) -> CompactReport:
    """Merge the store's segments and their lists into one, or continue an interrupted compaction.

    Memory stays within its limit for any size. Open readers keep their state; its files are removed by the first
    writing command after the last of them closes it. Raises ResourceError before any work if the disk has too little
    space.
    """
    with editing(root) as edit:
        job.runner.require_shared(root, [])
        store = edit.store
        report = plan_compaction(store, options)
        if report.due:
            _require_room(store)
            sources = live_sources(store)
            segment = copy_segment(edit, sources, job)
            index = _make_lists(edit, segment, sources, job)
            state = replace(
                store.manifest,
                segments=(segment.root.name,),
                index=index.name if index else None,
                indexed=(segment.root.name,) if index else (),
                removed=None,
                dropped=(segment.root.name,) if index and store.manifest.dropped else None,
            )
            if index and state.dropped:  # keys that were only in the lists are again only there
                require_listed(index, segment)
            _publish(edit, state, report)
        edit.give_up(COPY_FOLDER, INDEX)
        swept = edit.sweep()
        if not swept.held:
            current = edit.store  # memories of other states hold removed tokens
            discard_others(root, suffix_folder(current).root.name if current.live_rows else None)
        return replace(report, bytes=state_bytes(root, edit.state), freed=swept.bytes, held=tuple(swept.held))


def live_sources(store: Datastore) -> list[KeptDocuments]:
    """Return all documents of a store that aren't removed, by segment."""
    empty = np.empty(0, np.int64)
    return [
        KeptDocuments.whole(s, np.setdiff1d(np.arange(len(s.documents)), store.removed.get(s.root.name, empty)))
        for s in store.segments
    ]


def _make_lists(edit: Edit, segment: Segment, sources: Sequence[KeptDocuments], job: Job) -> IndexFolder[Any] | None:
    """Carry the store's lists over to the new segment, under its quantisers or reduced ones; None without an index."""
    store = edit.store
    if store.manifest.index is None or not segment.rows:
        return None
    present = open_index(store.root, store.manifest.index)
    folder = type_of(present).carry(store, edit, segment, sources, job)
    if folder is not None:
        state = replace(
            store.manifest, segments=(segment.root.name,), index=None, indexed=(), removed=None, dropped=None
        )
        check_lists(folder, store.at(state), segment, job)
    return folder


def _publish(edit: Edit, state: Manifest, report: CompactReport) -> None:
    segments = f"{report.segments} segments as one" if report.segments > 1 else "one segment"
    removed = f", without {report.removed_documents:,} removed documents" if report.removed_documents else ""
    edit.publish(
        state,
        "compact",
        f"rewrite {segments} of {report.rows:,} keys{removed}",
        segments=report.segments,
        keys=report.rows,
        removed_documents=report.removed_documents,
        removed_keys=report.removed_rows,
    )


def _require_room(store: Datastore) -> None:
    total = state_bytes(store.root, store.manifest)
    lists = total - bytes_below(*(segment.root for segment in store.segments))
    written = _unfinished_bytes(store.root, store.segments)
    needed = int((total + lists) * store.live_rows / max(1, store.rows)) - written  # the runs are written twice
    require_room(store.root, needed, f"compacted, {store.live_rows:,} keys", "move the store to a larger disk")


def _unfinished_bytes(root: Path, finished: Sequence[Segment]) -> int:
    names = {segment.root.name for segment in finished}
    return bytes_below(*(path for path in (root / SEGMENTS).iterdir() if path.name not in names))
