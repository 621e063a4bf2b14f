"""Copies of a text: of documents with the same SHA-256 one is stored, or held out, and no other."""

import numpy as np

from knnstore.arrays import Bool
from knnstore.datastore.removed import Removed
from knnstore.datastore.segment import Segment
from knnstore.datastore.takedowns import Digests

_BLOCK = 2**16


def first_of_each(digests: Digests) -> Bool:
    """Whether no earlier document has the same digest: bool (documents,). Takes 16 bytes a document besides them."""
    order = np.argsort(digests, kind="stable")
    first = np.ones(len(digests), np.bool_)
    for begin in range(1, len(order), _BLOCK):
        here = order[begin - 1 : begin + _BLOCK]
        sorted_digests = digests[here]
        first[here[1:]] = sorted_digests[1:] != sorted_digests[:-1]
    return first


def superfluous_of(segment: Segment) -> Removed:
    """Documents that repeat another one of a segment whose plan let them in: an older version began it.

    Of each text the document with most held-out tokens stays, else the first: what is measured on must not be stored.
    """
    if segment.plan.distinct:
        return {}
    table = segment.documents
    order = np.argsort(-table.heldout_tokens, kind="stable")
    if not table.tokens[order[first_of_each(table.sha256[order])]].any():  # nothing would be left to search
        order = order[::-1]
    numbers = np.sort(order[~first_of_each(table.sha256[order])])
    return {segment.root.name: numbers} if len(numbers) else {}
