"""Re-rank candidates by exact distance, with keys read from the mapped lists."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.indexes.compute.stored import Candidates, decode
from knnstore.indexes.ivfpq.lists import SegmentLists
from knnstore.neighbours import ABSENT, Neighbours


def rerank_exactly(
    queries: Float32, candidates: Candidates, k: int, parts: Sequence[SegmentLists], *, rows: bool
) -> Neighbours:
    """Return the k nearest of each query's candidates, whose tags are places in list order over all segments."""
    distances = np.full((len(queries), k), np.inf, np.float32)
    values = np.full((len(queries), k), ABSENT, np.int64)
    numbers = np.full((len(queries), k), ABSENT, np.int64) if rows else None
    places = candidates.tags
    assert places is not None
    assert candidates.values is not None
    for query, key in enumerate(queries):
        present = np.flatnonzero(places[query] != ABSENT)
        present = present[np.argsort(places[query, present])]  # a single sweep over the map
        near = places[query, present]
        difference = _read(parts, near, "keys") - key
        squared = np.einsum("nd,nd->n", difference, difference)
        order = np.lexsort((near, squared))[:k]
        count = len(order)
        distances[query, :count] = squared[order]
        values[query, :count] = candidates.values[query, present[order]]
        if numbers is not None:
            numbers[query, :count] = _read(parts, near[order], "rows")
    return Neighbours(distances, values, numbers)


def _read(parts: Sequence[SegmentLists], places: Int64, what: str) -> np.ndarray[Any, Any]:
    """Return float32 keys ``(n, d)``, or int64 store rows ``(n,)``, at places in list order over all segments."""
    firsts = np.array([part.first_row for part in parts])
    owner = np.searchsorted(firsts, places, side="right") - 1
    width = parts[0].keys.shape[1:] if what == "keys" else ()
    result = np.empty((len(places), *width), np.float32 if what == "keys" else np.int64)
    for number, part in enumerate(parts):
        owned = np.flatnonzero(owner == number)
        local = places[owned] - part.first_row
        if what == "keys":
            result[owned] = decode(part.keys.take(local), part.scales)
        else:
            result[owned] = part.rows.take(local).astype(np.int64) + part.first_row
    return result
