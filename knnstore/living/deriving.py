"""``knnstore merge`` and ``knnstore subset``: which documents make a store of its own, without the LM."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from knnstore.datastore.origins import KeptDocuments
from knnstore.datastore.removed import Removed
from knnstore.datastore.selection import matching, sampled
from knnstore.datastore.store import Datastore
from knnstore.datastore.takedowns import Digests, load_takedowns
from knnstore.errors import UsageError
from knnstore.living.compact import live_sources
from knnstore.living.derived import DeriveReport, Target, derive
from knnstore.scheduling import Job
from knnstore.wording import command, option


def merge(stores: Sequence[Datastore], into: Path, job: Job, *, overwrite: bool = False) -> DeriveReport:
    """Make the store ``into`` of all documents of several, each text once: the first store that has it wins.

    So no text is held out of one and stored from another; and what was removed from one on purpose isn't taken from
    another. The index of the store that has the most keys in one is carried over, and takes in the others' keys. Goes
    on with a merge that was interrupted. Raises MismatchError unless the stores are of one LM, key layer, window and
    key dtype.
    """
    if len(stores) < 2:
        merge = command("merge", "ONE", "OTHER", into="NEW").strip("'")
        raise UsageError(f"a merge takes two stores at least: {merge}")
    every = [live_sources(store) for store in stores]
    texts = [np.concatenate([_digests(source) for source in sources]) for sources in every]
    taken_down = [np.setdiff1d(load_takedowns(s.root), live) for s, live in zip(stores, texts, strict=True)]
    parts: list[KeptDocuments] = []
    doubles = 0
    for number, sources in enumerate(every):
        seen = np.concatenate([np.empty(0, "S32"), *texts[:number]])
        unwanted = np.concatenate([np.empty(0, "S32"), *taken_down[:number], *taken_down[number + 1 :]])
        for source in sources:
            known, withheld = np.isin(_digests(source), seen), np.isin(_digests(source), unwanted)
            doubles += int((known & ~withheld).sum())
            parts.append(KeptDocuments.whole(source.segment, source.documents[~known & ~withheld]))
    names = " and ".join(store.name for store in stores)
    target = Target("merge", names, stores, into, overwrite)
    return derive(target, parts, job, doubles=doubles)


def subset(
    store: Datastore,
    into: Path,
    job: Job,
    *,
    share: float | None = None,
    documents: Sequence[str] = (),
    overwrite: bool = False,
) -> DeriveReport:
    """Make the store ``into`` of some documents of another: about a ``share`` of the keys, or those matching patterns.

    A share keeps all that is held out, so that stores of several sizes are measured on one text; patterns choose among
    the held-out documents too. The index is carried over while its lists have the keys that lists need. Goes on with
    one that was interrupted.
    """
    if (share is None) == (not documents):
        raise UsageError(f"say which part: {option('sample', '10%')} or {option('documents', 'GLOB')}")
    chosen = matching(store, documents, "documents") if share is None else sampled(store, share)
    what = store.name if share is None else f"{store.name}, a sample of {share:.4g}"
    sources = [_part(source, chosen, heldout=share is not None) for source in live_sources(store)]
    target = Target("subset", what, [store], into, overwrite)
    return derive(target, sources, job, doubles=0)


def _part(source: KeptDocuments, chosen: Removed, *, heldout: bool) -> KeptDocuments:
    """The chosen documents of a source, and what is held out of the others if ``heldout``."""
    rows = np.isin(source.documents, chosen.get(source.segment.root.name, np.empty(0, np.int64)))
    held = source.heldout_tokens > 0
    keep = rows | held if heldout else rows
    return KeptDocuments(source.segment, source.documents[keep], rows[keep], (held if heldout else rows)[keep])


def _digests(source: KeptDocuments) -> Digests:
    return source.segment.documents.sha256[source.documents]
