"""A few queries at a time, as generation asks them: each reads its own lists, all of which are asked for first.

The join reads a list once for all its queries and pays for it with a sorting of queries and two passes; a single
query wants its lists at once, one distance a key, and one selection.
"""

from collections.abc import Iterator

import numpy as np

from knnstore.index.compiled import squared_distances_of_units
from knnstore.index.join import Batch, Lists, Tile
from knnstore.neighbours import ABSENT, Float32, Int64, Neighbours

FEW = 8
"""So many queries at most are quicker looked up than joined."""


def look_up(batch: Batch, lists: Lists, k: int, *, rows: bool) -> Neighbours:
    """The k nearest of all keys in the lists that each query probes, with their row numbers if ``rows``."""
    shape = (len(batch), k)
    distances = np.full(shape, np.inf, np.float32)
    values, found = np.full(shape, ABSENT, np.int64), np.full(shape, ABSENT, np.int64)
    for line, (query, probed) in enumerate(zip(batch.queries, batch.probed, strict=True)):
        numbers = np.sort(probed).tolist()
        for number in numbers:
            lists.read_ahead(number)
        tiles = [tile for number in numbers for tile in _whole_lists(number, lists)]
        if not tiles:
            continue
        far = np.concatenate([_distances(query, tile, lists) for tile in tiles])
        nearest = _smallest(far, k)
        starts = np.cumsum([0] + [tile.end - tile.begin for tile in tiles])
        owner = np.searchsorted(starts, nearest, side="right") - 1
        within = nearest - starts[owner]
        count = len(nearest)
        distances[line, :count] = far[nearest]
        for number in np.unique(owner):
            tile, here = tiles[number], np.flatnonzero(owner == number)
            values[line, here] = tile.part.values.rows(tile.begin, tile.end)[within[here]]
            if rows:
                found[line, here] = tile.part.store_rows(tile.begin, tile.end)[within[here]]
    return Neighbours(distances, values, found if rows else None)


def _whole_lists(number: int, lists: Lists) -> Iterator[Tile]:
    for part in lists.parts:
        begin, end = part.bounds(number)
        if begin < end:
            yield Tile(number, part, begin, end)


def _distances(query: Float32, tile: Tile, lists: Lists) -> Float32:
    """Squared distances of a tile's keys, float32 (rows,); those of hidden keys are infinite."""
    kept = tile.part.kept(tile.begin, tile.end)
    if lists.units:
        assert tile.part.scales is not None
        distances = squared_distances_of_units(query, tile.part.keys.rows(tile.begin, tile.end), tile.part.scales)
    else:
        gaps = (lists.centroids[tile.number] - query) + lists.residuals(tile).numpy()
        distances = np.einsum("nd,nd->n", gaps, gaps)
    if kept is not None:
        hidden = np.ones(len(distances), np.bool_)
        hidden[kept] = False
        distances[hidden] = np.inf
    return distances


def _smallest(distances: Float32, k: int) -> Int64:
    """Where the k smallest finite ones lie, nearest first; ties go to the first."""
    if k < len(distances):
        limit = np.partition(distances, k - 1)[k - 1]
        chosen = np.flatnonzero(distances <= limit)
    else:
        chosen = np.arange(len(distances))
    order = chosen[np.argsort(distances[chosen], kind="stable")][:k]
    return order[np.isfinite(distances[order])]
