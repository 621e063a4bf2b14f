"""Select documents of a store by name, by id, or as a share of them."""

import re
from collections.abc import Sequence
from fnmatch import translate

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.documents import DocumentName
from knnstore.datastore.removed import Removed
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError
from knnstore.wording import option

_SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")
_SHOWN = 3


def matching(store: Datastore, patterns: Sequence[str], parameter: str) -> Removed:
    """Return the documents, by segment, that aren't removed and match any of the patterns.

    A pattern is matched against a document's path, its id, and ``PATH#ID`` (or ``PATH#RECORD``); ``*`` crosses folders,
    and a pattern that ends in ``/`` matches all below. Raises UsageError, about ``parameter``, if one matches nothing.
    """
    matches: dict[str, Int64] = {}
    unmatched = set(patterns)
    tests = {pattern: _test(pattern) for pattern in patterns}
    examples: list[str] = []
    for segment in store.segments:
        live, chosen = set(_live(store, segment).tolist()), []
        for number, document in enumerate(segment.documents.origins()):
            if number not in live:
                continue
            names = {document.path, str(document), document.id or document.path}
            hits = [pattern for pattern, test in tests.items() if pattern in names or any(map(test.match, names))]
            unmatched.difference_update(hits)
            if hits:
                chosen.append(number)
            elif len(examples) < _SHOWN:
                examples.append(str(document))
        matches[segment.root.name] = np.array(chosen, np.int64)
    if unmatched:
        hint = f"; it has {', '.join(examples)} …" if examples else ""
        fault = f"matches no document of {store.root}{hint}"
        raise UsageError.about(parameter, sorted(unmatched)[0], fault, quoted=True)
    return {name: numbers for name, numbers in matches.items() if len(numbers)}


def sampled(store: Datastore, share: float) -> Removed:
    """Return stored documents with about a share of the keys, at least one: those whose text digests sort first.

    The choice therefore depends only on the texts, and the documents of a smaller share are among those of a larger.
    """
    documents = [(_stored(store, segment), segment) for segment in store.segments]
    digests = np.concatenate([segment.documents.sha256[numbers] for numbers, segment in documents])
    tokens = np.concatenate([segment.documents.tokens[numbers] for numbers, segment in documents])
    order = np.argsort(digests, kind="stable")
    before = np.cumsum(tokens[order]) - tokens[order]  # a document is taken if its middle is within the share
    taken = np.zeros(len(order), np.bool_)
    taken[order] = before + tokens[order] / 2 <= share * tokens.sum()
    taken[order[:1]] = True
    ends = np.cumsum([len(numbers) for numbers, _ in documents])[:-1]
    return {
        segment.root.name: numbers[part]
        for (numbers, segment), part in zip(documents, np.split(taken, ends), strict=True)
        if part.any()
    }


def selected(store: Datastore, wanted: Sequence[str], parameter: str) -> Removed:
    """Return the documents selected by a single share such as ``10%``, or by patterns."""
    if len(wanted) == 1 and wanted[0].rstrip().endswith("%"):
        return sampled(store, parse_share(wanted[0], parameter))
    return matching(store, wanted, parameter)


def parse_share(text: str, parameter: str) -> float:
    """Return ``10%`` as 0.1. Raises UsageError, about ``parameter``, if the text isn't a share."""
    match = _SHARE.fullmatch(text.strip())
    if match is None or not 0 < float(match[1]) <= 100:
        remedy = f"give more than 0% and at most 100%, as in {option(parameter, '10%')}"
        raise UsageError.about(parameter, text, limit="100%", remedy=remedy)
    return float(match[1]) / 100


def others(store: Datastore, documents: Removed) -> Removed:
    """Return all documents that aren't removed, except those given."""
    empty = np.empty(0, np.int64)
    left = {s.root.name: np.setdiff1d(_live(store, s), documents.get(s.root.name, empty)) for s in store.segments}
    return {name: numbers for name, numbers in left.items() if len(numbers)}


def origins_of(store: Datastore, documents: Removed) -> list[DocumentName]:
    """Return the origins of the given documents."""
    return [segment.documents[int(n)] for segment in store.segments for n in documents.get(segment.root.name, ())]


def _live(store: Datastore, segment: Segment) -> Int64:
    removed = store.removed.get(segment.root.name, np.empty(0, np.int64))
    return np.setdiff1d(np.arange(len(segment.documents)), removed)


def _stored(store: Datastore, segment: Segment) -> Int64:
    live = _live(store, segment)
    return live[segment.documents.tokens[live] > 0]


def _test(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(f"{pattern}*" if pattern.endswith("/") else pattern))
