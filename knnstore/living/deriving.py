"""``knnstore merge`` and ``knnstore subset``: a store of its own out of documents of others, without the LM."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from knnstore.atomic import free_bytes, storage_errors
from knnstore.datastore.history import TAKEDOWN, publish
from knnstore.datastore.locking import LOCK_FILE, writing
from knnstore.datastore.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest, load_manifest, save_manifest
from knnstore.datastore.removed import Removed
from knnstore.datastore.segment import Segment
from knnstore.datastore.selection import matching, sampled
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import bytes_below, remove_tree
from knnstore.datastore.takedowns import Digests, load_takedowns, save_takedown
from knnstore.errors import MismatchError, ResourceError, UsageError
from knnstore.living.compact import live_sources
from knnstore.living.copying import Source
from knnstore.living.segments import copied_plan, copy_segment, discard_copies
from knnstore.progress import Reporter
from knnstore.scheduling import Runner
from knnstore.sizes import format_size


@dataclass(frozen=True, slots=True)
class DeriveReport:
    """A store that was made of others: what it holds. ``doubles``: documents left out because another store of the
    merge has them.
    """

    store: Path
    documents: int
    rows: int
    heldout_documents: int
    heldout_tokens: int
    doubles: int
    bytes: int


def merge(
    stores: Sequence[Datastore],
    into: Path,
    runner: Runner,
    reporter: Reporter | None = None,
    *,
    overwrite: bool = False,
) -> DeriveReport:
    """Make the store ``into`` of all documents of several, each text once: the first store that has it wins.

    So no text is held out of one and stored from another; and what was removed from one on purpose isn't taken from
    another. Goes on with a merge that was interrupted. Raises MismatchError unless the stores are of one LM, key layer,
    window and key dtype.
    """
    if len(stores) < 2:
        raise UsageError("a merge takes two stores at least: knnstore merge ONE OTHER --into NEW")
    every = [live_sources(store) for store in stores]
    texts = [np.concatenate([_digests(source) for source in sources]) for sources in every]
    taken_down = [np.setdiff1d(load_takedowns(s.root), live) for s, live in zip(stores, texts, strict=True)]
    parts: list[Source] = []
    doubles = 0
    for number, sources in enumerate(every):
        seen = np.concatenate([np.empty(0, "S32"), *texts[:number]])
        unwanted = np.concatenate([np.empty(0, "S32"), *taken_down[:number], *taken_down[number + 1 :]])
        for source in sources:
            known, withheld = np.isin(_digests(source), seen), np.isin(_digests(source), unwanted)
            doubles += int((known & ~withheld).sum())
            parts.append(Source.whole(source.segment, source.documents[~known & ~withheld]))
    names = " and ".join(store.name for store in stores)
    target = _Target("merge", names, stores, into, overwrite)
    return _derive(target, parts, runner, reporter, doubles=doubles)


def subset(
    store: Datastore,
    into: Path,
    runner: Runner,
    reporter: Reporter | None = None,
    *,
    share: float | None = None,
    documents: Sequence[str] = (),
    overwrite: bool = False,
) -> DeriveReport:
    """Make the store ``into`` of some documents of another: about a ``share`` of the keys, or those matching patterns.

    A share keeps all that is held out, so that stores of several sizes are measured on one text; patterns choose among
    the held-out documents too. Goes on with one that was interrupted.
    """
    if (share is None) == (not documents):
        raise UsageError("say which part: --sample 10% or --documents GLOB")
    chosen = matching(store, documents, "--documents") if share is None else sampled(store, share)
    what = store.name if share is None else f"{store.name}, a sample of {share:.4g}"
    sources = [_part(source, chosen, heldout=share is not None) for source in live_sources(store)]
    return _derive(_Target("subset", what, [store], into, overwrite), sources, runner, reporter, doubles=0)


def _part(source: Source, chosen: Removed, *, heldout: bool) -> Source:
    """The chosen documents of a source, and what is held out of the others if ``heldout``."""
    rows = np.isin(source.documents, chosen.get(source.segment.root.name, np.empty(0, np.int64)))
    held = source.heldout_tokens > 0
    keep = rows | held if heldout else rows
    return Source(source.segment, source.documents[keep], rows[keep], (held if heldout else rows)[keep])


def _digests(source: Source) -> Digests:
    return source.segment.documents.sha256[source.documents]


@dataclass(frozen=True, slots=True)
class _Target:
    """The store to make at ``root``: by which command, of ``what`` in words, from which ``stores``."""

    kind: str
    what: str
    stores: Sequence[Datastore]
    root: Path
    overwrite: bool


def _derive(
    target: _Target, sources: list[Source], runner: Runner, reporter: Reporter | None, *, doubles: int
) -> DeriveReport:
    into = target.root
    if into.resolve() in {store.root.resolve() for store in target.stores}:
        raise UsageError(f"--into {into} is one of the stores to be read: give the new one a name of its own")
    sources = [source for source in sources if len(source.documents)]
    rows = sum(int(source.tokens.sum()) for source in sources)
    if not rows:
        raise UsageError(f"nothing to make {into} of: no stored document is left of {target.what}")
    plan = copied_plan(sources)
    with storage_errors("make", into):
        into.mkdir(parents=True, exist_ok=True)
    with writing(into):
        _clear(into, overwrite=target.overwrite)
        if not (into / MANIFEST_FILE).exists():
            save_manifest(into, Manifest("knnstore", FORMAT_VERSION, plan.model, plan.key, (), None))
        present = load_manifest(into)
        finished = [Segment(into / "segments" / name) for name in present.segments]
        if finished and [segment.plan for segment in finished] != [plan]:
            raise MismatchError(f"{into} holds something else: choose another --into, or discard it with --overwrite")
        if not finished:
            _require_room(into, sources, rows)
            segment = copy_segment(into, sources, runner=runner, reporter=reporter or Reporter())
            finished = [segment]
            state = replace(present, segments=(segment.root.name,))
            documents = len(segment.documents)
            what = f"{documents:,} documents, {segment.rows:,} keys of {target.what}"
            facts: dict[str, int | str] = {"documents": documents, "keys": segment.rows}
            takedowns = np.concatenate([load_takedowns(store.root) for store in target.stores])
            if len(takedowns):
                facts[TAKEDOWN] = save_takedown(into, state.state + 1, takedowns)
            publish(into, state, target.kind, what, **facts)
        discard_copies(into)
        table = finished[0].documents
        heldout = table.heldout()
        return DeriveReport(
            into,
            len(table),
            table.rows,
            len(heldout),
            int(table.heldout_tokens[heldout].sum()),
            doubles,
            bytes_below(finished[0].root),
        )


def _clear(into: Path, *, overwrite: bool) -> None:
    others = [entry for entry in into.iterdir() if entry.name != LOCK_FILE]
    if others and not (into / MANIFEST_FILE).exists():
        raise UsageError(f"{into} is no store but isn't empty: choose another name with --into")
    if overwrite:
        for entry in others:
            if entry.is_dir():
                remove_tree(entry)
            else:
                entry.unlink()


def _require_room(into: Path, sources: Sequence[Source], rows: int) -> None:
    total = sum(bytes_below(source.segment.root) for source in sources)
    there = sum(source.segment.rows for source in sources)
    needed, free = int(total * rows / max(1, there)) - bytes_below(into / "segments"), free_bytes(into)
    if needed > free:
        raise ResourceError(
            f"{into}: {rows:,} keys need about {format_size(needed)} on disk and {format_size(free)} are free: "
            "make room, or choose another place with --into"
        )
