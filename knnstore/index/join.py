"""The bulk join: queries are grouped by the lists that they probe, and each list is read once for all of them.

Distances come from a matrix product of residuals: queries and keys both minus the list's centroid, which loses less
to cancellation than whole vectors would.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from knnstore.index.lists import SegmentLists
from knnstore.index.nearest import Nearest, spare_slots
from knnstore.index.quantiser import Float32, Int64, Quantiser
from knnstore.index.train import decode

_QUERIES_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows ``[begin, end)``, in list order, of one list of one segment."""

    number: int
    part: SegmentLists
    begin: int
    end: int

    @property
    def positions(self) -> Int64:
        """Places in list order over all segments: int64 (end − begin,)."""
        return np.arange(self.begin, self.end) + self.part.first_row

    @property
    def rows(self) -> Int64:
        """Row numbers in the store: int64 (end − begin,)."""
        return self.part.store_rows(self.begin, self.end)


ReadResiduals = Callable[[Tile], torch.Tensor]
"""The tile's keys minus their centroid: float32 (rows, d)."""

ReadTags = Callable[[Tile], Int64]


def stored_residuals(quantiser: Quantiser) -> ReadResiduals:
    """Reads the keys themselves."""

    def read(tile: Tile) -> torch.Tensor:
        keys = decode(tile.part.keys.rows(tile.begin, tile.end), tile.part.scales)
        keys -= quantiser.centroids[tile.number]
        return torch.from_numpy(keys)

    return read


def coded_residuals(quantiser: Quantiser) -> ReadResiduals:
    """Reads the PQ codes alone: a sixteenth to an eighth of the bytes."""
    return lambda tile: quantiser.decode(tile.part.codes.rows(tile.begin, tile.end))


def join(
    queries: Float32,
    probed: Int64,
    parts: Sequence[SegmentLists],
    centroids: Float32,
    residuals: ReadResiduals,
    tags: ReadTags | None,
    nearest: Nearest,
    advance: Callable[[int], None],
) -> None:
    """Offer to ``nearest`` every key of the lists that each query probes.

    Args:
        queries: float32 (n, d).
        probed: int64 (n, nprobe), list numbers.
        parts: the lists of each segment.
        centroids: float32 (nlist, d).
        residuals: reads a tile's keys.
        tags: reads what is to be kept along with each value.
        nearest: of n queries.
        advance: told of finished (query, list) pairs.
    """
    for number, members in _by_list(probed, len(centroids)):
        tiles = list(_tiles(number, parts, spare_slots(nearest.k)))
        if not tiles:
            advance(len(members))
            continue
        for begin in range(0, len(members), _QUERIES_AT_ONCE):
            block = members[begin : begin + _QUERIES_AT_ONCE]
            local = torch.from_numpy(queries[block] - centroids[number])  # (m, d)
            offsets = local.square().sum(1).numpy()
            for tile in tiles:
                scores = squared_distances(local, residuals(tile)).numpy()
                values = tile.part.values.rows(tile.begin, tile.end)
                nearest.offer(block, scores, offsets, values, None if tags is None else tags(tile))
            advance(len(block))


def squared_distances(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """‖k‖² − 2 q·k, which is the squared distance less ‖q‖²: float32 (m, t) of queries (m, d) and keys (t, d)."""
    return torch.addmm(keys.square().sum(1), queries, keys.T, alpha=-2)


def _by_list(probed: Int64, nlist: int) -> Iterator[tuple[int, Int64]]:
    """Each list that is probed, with the queries that probe it, both in ascending order."""
    flat = np.ascontiguousarray(probed).reshape(-1)
    order = np.argsort(flat, kind="stable")
    members = order // probed.shape[1]
    ends = np.cumsum(np.bincount(flat, minlength=nlist))
    begin = 0
    for number, end in enumerate(ends.tolist()):
        if end > begin:
            yield number, members[begin:end]
        begin = end


def _tiles(number: int, parts: Sequence[SegmentLists], most: int) -> Iterator[Tile]:
    for part in parts:
        begin, end = part.bounds(number)
        for start in range(begin, end, most):
            yield Tile(number, part, start, min(start + most, end))
