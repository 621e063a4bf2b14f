"""The bulk join: queries are grouped by the lists that they probe, and each list is read once for all of them.

Distances come from a matrix product of residuals: queries and keys both minus the list's centroid, which loses less
to cancellation than whole vectors would.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from threading import Lock

import numpy as np
import torch

from knnstore.datastore.mapped import MappedArray
from knnstore.index.lists import SegmentLists
from knnstore.index.nearest import Nearest, concatenate, spare_slots
from knnstore.index.quantiser import Float32, Int64, Quantiser
from knnstore.index.threads import query_threads
from knnstore.index.train import decode
from knnstore.neighbours import Neighbours

_QUERIES_AT_ONCE = 2048
_HEAD_SHARE = 1 / 16
_FEWEST_ROWS = 16


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows ``[begin, end)``, in list order, of one list of one segment."""

    number: int
    part: SegmentLists
    begin: int
    end: int


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


def positions(tile: Tile) -> Int64:
    """Places in list order over all segments: int64 (rows,)."""
    return np.arange(tile.begin, tile.end) + tile.part.first_row


def stored_rows(tile: Tile) -> Int64:
    """Row numbers in the store: int64 (rows,)."""
    return tile.part.store_rows(tile.begin, tile.end)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Queries, float32 (n, d), and the lists that each probes, int64 (n, nprobe)."""

    queries: Float32
    probed: Int64

    def __len__(self) -> int:
        return len(self.queries)

    def select(self, queries: slice | Int64) -> "Batch":
        """Some of the queries."""
        return Batch(self.queries[queries], self.probed[queries])


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """What is joined with: the lists of each segment, centroids float32 (nlist, d), how to read keys and tags.

    ``mapped`` names the array that ``residuals`` reads.
    """

    parts: Sequence[SegmentLists]
    centroids: Float32
    mapped: Callable[[SegmentLists], MappedArray]
    residuals: ReadResiduals
    tags: ReadTags | None

    def read_ahead(self, number: int) -> None:
        """Ask the kernel to read a list from the disk meanwhile."""
        for part in self.parts:
            begin, end = part.bounds(number)
            if begin < end:
                self.mapped(part).will_need(begin, end)

    def sizes(self, share: float = 1.0) -> Int64:
        """Keys in (a share of) each list, hidden ones too: int64 (nlist,)."""
        total = np.zeros(len(self.centroids), np.int64)
        for part in self.parts:
            total += np.ceil(np.diff(part.offsets) * share).astype(np.int64)
        return total

    def live(self) -> Int64:
        """Keys in each list that aren't hidden: int64 (nlist,)."""
        total: Int64 = np.sum([part.live for part in self.parts], axis=0)
        return total

    def read(self, tile: Tile) -> tuple[torch.Tensor, Int64 | None]:
        """Residuals of the tile's keys that aren't hidden, and their places in it (None: all of them)."""
        kept = tile.part.kept(tile.begin, tile.end)
        if kept is not None and not len(kept):
            return torch.empty((0, self.centroids.shape[1])), kept
        residuals = self.residuals(tile)
        return (residuals, None) if kept is None else (residuals[torch.from_numpy(kept)], kept)


def join_in_threads(batch: Batch, lists: Lists, k: int, progress: Callable[[int], None] | None) -> Neighbours:
    """``join`` with the queries shared out to as many threads as torch uses; the result is the same."""
    lock = Lock()

    def advance(count: int) -> None:
        if progress:
            with lock:
                progress(count)

    with query_threads(len(batch)) as (pool, shares):
        return concatenate(list(pool.map(lambda share: join(batch.select(share), lists, k, advance), shares)))


def join(batch: Batch, lists: Lists, k: int, advance: Callable[[int], None]) -> Neighbours:
    """The k nearest of all keys in the lists that each query probes; ``advance`` is told of (query, list) pairs."""
    held = lists.live()[batch.probed].sum(axis=1)  # keys that each query meets
    neighbours, found = _scan(batch, lists, k, _sampled_thresholds(batch, lists, k, held), advance)
    short = np.flatnonzero(found < np.minimum(held, k))
    if len(short):  # about one in three thousand has a threshold that was too low
        again, _ = _scan(batch.select(short), lists, k, _unlimited(len(short)), lambda _: None)
        neighbours.distances[short], neighbours.values[short] = again.distances, again.values
        if neighbours.rows is not None and again.rows is not None:
            neighbours.rows[short] = again.rows
    return neighbours


def _scan(
    batch: Batch, lists: Lists, k: int, thresholds: Float32, advance: Callable[[int], None]
) -> tuple[Neighbours, Int64]:
    """The k nearest keys below the thresholds, and how many of the k there are for each query."""
    nearest = Nearest(thresholds, k, tags=lists.tags is not None)
    groups = list(_by_list(batch.probed, len(lists.centroids)))
    following = [number for number, _ in groups[1:]]
    for (number, members), upcoming in zip_longest(groups, following):
        if upcoming is not None:
            lists.read_ahead(upcoming)
        for tile in _tiles(number, lists.parts, 1.0, spare_slots(k)):
            residuals, kept = lists.read(tile)
            values = tile.part.values.rows(tile.begin, tile.end)
            tags = lists.tags(tile) if lists.tags else None
            if kept is not None:
                values, tags = values[kept], None if tags is None else tags[kept]
            for block, scores, offsets in _scores(batch, lists, number, members, residuals):
                nearest.offer(block, scores, offsets, values, tags)
        advance(len(members))
    return nearest.neighbours(), nearest.found()


def _sampled_thresholds(batch: Batch, lists: Lists, k: int, held: Int64) -> Float32:
    """A distance for each query, float32 (n,), that k of the ``held`` keys it meets are very likely to lie below.

    The head of each list is a fair sample of it. Of a share f of the keys the f·k + 3√(f·k)-th nearest lies beyond
    the k-th nearest of all, but for three standard deviations.
    """
    room = k + spare_slots(k)
    most = int(held.max(initial=0))
    if most <= room:
        return _unlimited(len(batch))
    share = min(_HEAD_SHARE, 2 * room / most)  # no more than fits where the survivors will lie
    width = int(lists.sizes(share)[batch.probed].sum(axis=1).max())
    heads = np.full((len(batch), width), np.inf, np.float32)
    filled = np.arange(len(batch)) * width
    for number, members in _by_list(batch.probed, len(lists.centroids)):
        for tile in _tiles(number, lists.parts, share, spare_slots(k)):
            residuals, _ = lists.read(tile)
            for block, scores, offsets in _scores(batch, lists, number, members, residuals):
                places = filled[block][:, None] + np.arange(len(residuals))
                heads.reshape(-1)[places] = scores + offsets[:, None]
                filled[block] += len(residuals)
    sampled = filled - np.arange(len(batch)) * width
    expected = k * sampled / np.maximum(held, 1)
    ranks = np.ceil(expected + 3 * np.sqrt(expected)).astype(np.int64)
    thresholds = _unlimited(len(batch))
    for begin in range(0, len(batch), _QUERIES_AT_ONCE):
        rows = slice(begin, begin + _QUERIES_AT_ONCE)
        column = np.minimum(ranks[rows], width - 1)[:, None]  # beyond the filled part lies infinity
        thresholds[rows] = np.take_along_axis(np.sort(heads[rows], axis=1), column, 1)[:, 0]
    thresholds[(held <= room) | (ranks >= width)] = np.inf
    return thresholds


def _scores(
    batch: Batch, lists: Lists, number: int, members: Int64, residuals: torch.Tensor
) -> Iterator[tuple[Int64, Float32, Float32]]:
    """Blocks of a list's queries (m,) with scores (m, t) of its keys and offsets (m,); a distance is their sum."""
    for begin in range(0, len(members), _QUERIES_AT_ONCE):
        block = members[begin : begin + _QUERIES_AT_ONCE]
        local = torch.from_numpy(batch.queries[block] - lists.centroids[number])  # (m, d)
        yield block, squared_distances(local, residuals).numpy(), local.square().sum(1).numpy()


def _unlimited(queries: int) -> Float32:
    return np.full(queries, np.inf, np.float32)


def squared_distances(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """‖k‖² − 2 q·k, which is the squared distance less ‖q‖²: float32 (m, t) of queries (m, d) and keys (t, d).

    The bits of a distance don't depend on what else is in the product: a few rows would be multiplied by other
    routines, that round otherwise, so there are never fewer than ``_FEWEST_ROWS``.
    """
    m, t = len(queries), len(keys)
    if min(m, t) >= _FEWEST_ROWS:
        return torch.addmm(keys.square().sum(1), queries, keys.T, alpha=-2)
    queries, keys = _at_least(queries, _FEWEST_ROWS), _at_least(keys, _FEWEST_ROWS)
    return torch.addmm(keys.square().sum(1), queries, keys.T, alpha=-2)[:m, :t].contiguous()


def _at_least(rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, max(0, count - len(rows))))


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


def _tiles(number: int, parts: Sequence[SegmentLists], share: float, most: int) -> Iterator[Tile]:
    """A share of a list, from its head, in tiles of at most ``most`` keys."""
    for part in parts:
        begin, end = part.bounds(number)
        end = begin + math.ceil((end - begin) * share)
        for start in range(begin, end, most):
            yield Tile(number, part, start, min(start + most, end))
