"""Compare queries with keys tile by tile. A tile is a range of consecutive keys of one list.

Distances come from a matrix product of residuals: the list's centroid is subtracted from queries and keys, which
loses less to cancellation than a product of the vectors themselves.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch

from knnstore.arrays import Int64
from knnstore.indexes.compute.protocols import Groups, Numbers, TopK, spare_slots
from knnstore.indexes.compute.stored import Probes, StoredLists

_QUERIES_AT_ONCE = 2048
_FEWEST_ROWS = 16
_CPU = torch.device("cpu")
# of ``unit_distances``, as in kernel.c
MOST_WEIGHT = 32000
_SMALLEST = 1e-30
_LANES = 16
_EXACT_DIMENSIONS = 1024  # 1024 · 128 · 127 < 2^24


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Rows ``[first, last)`` of a piece of list ``number``; those ``kept`` aren't hidden."""

    lists: StoredLists
    number: int
    piece: int
    first: int
    last: int
    kept: Int64 | slice

    def keys(self) -> torch.Tensor:
        """Return int8 keys as they are stored, others minus their centroid in float32: (kept, d)."""
        stored = self.lists.stored.rows(self.piece, self.first, self.last)
        if self.lists.in_units:
            return torch.from_numpy(stored[self.kept])
        return self.lists.residuals(stored, self.number)[self.kept]

    def numbers(self) -> Numbers:
        """Return the keys' values and tags, (kept,) each; None if they aren't read."""
        values, tags = (
            None if column is None else column.rows(self.piece, self.first, self.last)[self.kept]
            for column in (self.lists.values, self.lists.tags)
        )
        return values, None if tags is None else tags.astype(np.int64) + self.lists.first_tag


def tiles_of(groups: Groups, k: int) -> Iterator[Tile]:
    """Yield the tiles in which not all keys are hidden, each as large as ``TopK`` accepts at once."""
    most = spare_slots(k)
    for group in groups:
        pieces = [(number, lists, piece) for lists in group for piece, number in enumerate(lists.lists.tolist())]
        for number, lists, piece in sorted(pieces, key=itemgetter(0)):  # all segments of a list before the next list
            count = int(lists.stored.pieces.counts[piece])
            for first in range(0, count, most):
                last = min(first + most, count)
                kept: Int64 | slice = slice(None)
                if lists.hidden is not None and (hidden := lists.hidden.rows(piece, first, last)).any():
                    kept = np.flatnonzero(~hidden)
                    if not len(kept):
                        continue
                yield Tile(lists, number, piece, first, last, kept)


def offer_tiles(
    top_k: TopK, tiles: Iterable[tuple[Tile, torch.Tensor]], probes: Probes, device: torch.device = _CPU
) -> None:
    """Offer tiles, given with their keys on the device, to the queries that probe their lists."""
    queries = torch.from_numpy(probes.queries).to(device)
    for tile, keys in tiles:
        members, numbers = probes.of(tile.number), tile.numbers()
        centroid = torch.from_numpy(probes.centroids[tile.number]).to(device)
        for begin in range(0, len(members), _QUERIES_AT_ONCE):
            block = members[begin : begin + _QUERIES_AT_ONCE]
            local = queries.index_select(0, torch.from_numpy(block).to(device)) - centroid  # (m, d)
            if tile.lists.in_units:
                scales = torch.from_numpy(tile.lists.scales).to(device)
                distances, offsets = (
                    unit_distances(local, keys, scales, centroid),
                    torch.zeros(len(block), device=device),
                )
            else:
                distances, offsets = squared_distances(local, keys), local.square().sum(1)
            top_k.offer(block, distances, offsets, numbers)


def unit_distances(
    local: torch.Tensor, units: torch.Tensor, scales: torch.Tensor, centroid: torch.Tensor
) -> torch.Tensor:
    """Return the squared distances of queries less the centroid (m, d) to int8 keys ``units`` (t, d): float32 (m, t).

    Products are computed in integers, so that every engine returns the same bits; kernel.c has the definition. A
    distance close to 0 may be slightly negative.
    """
    weights = local * scales
    most = weights.abs().amax(1)
    steps = torch.where(most > _SMALLEST, most / MOST_WEIGHT, torch.ones_like(most))
    whole = (weights * (1 / steps)[:, None]).round()
    keys = units.to(torch.float32)
    norms = _sums_of_lanes((keys * scales - centroid).square())
    offsets = _sums_of_lanes(local.square()) + (2 * steps) * _sums_of_lanes(whole * (centroid / scales))
    return (_exact_products(whole, keys) * (-2 * steps)[:, None] + norms) + offsets[:, None]


def _exact_products(whole: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return the products of integers (m, d) of 16 bits and (t, d) of 8, each rounded once to float32: (m, t).

    float32 holds integers up to 2^24 exactly, so a matrix product of bytes is exact in any order of additions. The
    high and the low byte of a query are multiplied separately, and 256 high + low is rounded once. Wider keys take
    float64.
    """
    if keys.shape[1] > _EXACT_DIMENSIONS:
        return (whole.double() @ keys.double().T).float()
    high = ((whole + 128) / 256).floor()
    return torch.add((whole - 256 * high) @ keys.T, high @ keys.T, alpha=256)


def _sums_of_lanes(terms: torch.Tensor) -> torch.Tensor:
    """Return the sums of rows (n, d) in a fixed order of additions: float32 (n,).

    Dimension i is added to lane i mod 16, then the lanes in a tree. Registers of any width can do the same.
    """
    padded = torch.nn.functional.pad(terms, (0, -terms.shape[1] % _LANES)).reshape(len(terms), -1, _LANES)
    lanes = torch.zeros(len(terms), _LANES, device=terms.device)
    for step in padded.unbind(1):
        lanes += step
    for width in (8, 4, 2, 1):
        lanes = lanes[:, :width] + lanes[:, width:]
    return lanes[:, 0]


def squared_distances(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return ‖k‖² − 2 q·k, the squared distance less ‖q‖²: float32 (m, t) of queries (m, d) and keys (t, d).

    The bits of a distance must not depend on the other rows of the product. A product of few rows is computed by other
    routines, which round differently, so that both matrices are padded to at least ``_FEWEST_ROWS``.
    """
    m, t = len(queries), len(keys)
    if min(m, t) >= _FEWEST_ROWS:
        return torch.addmm(keys.square().sum(1), queries, keys.T, alpha=-2)
    queries, keys = _at_least(queries, _FEWEST_ROWS), _at_least(keys, _FEWEST_ROWS)
    return torch.addmm(keys.square().sum(1), queries, keys.T, alpha=-2)[:m, :t].contiguous()


def _at_least(rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, max(0, count - len(rows))))
