"""Find duplicates: of documents with the same SHA-256, only one is stored or held out."""

import numpy as np

from knnstore.arrays import Bool
from knnstore.datastore.removed import Removed
from knnstore.datastore.segment import Segment
from knnstore.datastore.takedowns import Digests

_BLOCK = 2**16


def first_of_each(digests: Digests) -> Bool:
    """Return whether each document is the first with its digest: bool (documents,). Needs 16 bytes per document."""
    order = np.argsort(digests, kind="stable")
    first = np.ones(len(digests), np.bool_)
    for begin in range(1, len(order), _BLOCK):
        block = order[begin - 1 : begin + _BLOCK]
        sorted_digests = digests[block]
        first[block[1:]] = sorted_digests[1:] != sorted_digests[:-1]
    return first


def superfluous_of(segment: Segment) -> Removed:
    """Return the duplicates in a segment that an older version of knnstore started, which didn't leave them out.

    Of each text, the document with the most held-out tokens stays, else the first, because text that is used for
    measurements must not be stored.
    """
    if segment.plan.distinct:
        return {}
    table = segment.documents
    order = np.argsort(-table.heldout_tokens, kind="stable")
    if not table.tokens[order[first_of_each(table.sha256[order])]].any():  # no key would be left to search
        order = order[::-1]
    numbers = np.sort(order[~first_of_each(table.sha256[order])])
    return {segment.root.name: numbers} if len(numbers) else {}
