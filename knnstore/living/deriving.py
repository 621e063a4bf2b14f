"""``knnstore merge`` and ``knnstore subset``: make a store from documents of others, without the LM."""

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
    """Make the store ``into`` from all documents of several stores, each text once, from the first store that has it.

    No text is thus held out in one store and stored from another, and a text that was removed from one store isn't
    taken from another. The index of the store with the most indexed keys is carried over, and the keys of the others
    are added to it. An interrupted merge is continued. Raises MismatchError unless the stores have the same LM, key
    layer, window and key dtype.
    """
    if len(stores) < 2:
        merge = command("merge", "ONE", "OTHER", into="NEW").strip("'")
        raise UsageError(f"a merge needs at least two stores: {merge}")
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
    """Make the store ``into`` from some documents of another: about a ``share`` of the keys, or matches of patterns.

    A share keeps all held-out text, so that stores of several sizes are measured on the same text; patterns also select
    among the held-out documents. The index is carried over unless too few keys per list would remain. An interrupted
    subset is continued.
    """
    if (share is None) == (not documents):
        raise UsageError(f"say which part: {option('sample', '10%')} or {option('documents', 'GLOB')}")
    chosen = matching(store, documents, "documents") if share is None else sampled(store, share)
    what = store.name if share is None else f"{store.name}, a sample of {share:.4g}"
    sources = [_part(source, chosen, heldout=share is not None) for source in live_sources(store)]
    target = Target("subset", what, [store], into, overwrite)
    return derive(target, sources, job, doubles=0)


def _part(source: KeptDocuments, chosen: Removed, *, heldout: bool) -> KeptDocuments:
    """Return the chosen documents of a source and, with ``heldout``, the held-out parts of the others."""
    rows = np.isin(source.documents, chosen.get(source.segment.root.name, np.empty(0, np.int64)))
    held = source.heldout_tokens > 0
    keep = rows | held if heldout else rows
    return KeptDocuments(source.segment, source.documents[keep], rows[keep], (held if heldout else rows)[keep])


def _digests(source: KeptDocuments) -> Digests:
    return source.segment.documents.sha256[source.documents]
