"""The bulk join: queries are grouped by the lists that they probe, and each list is read once for all of them.

Distances come from a matrix product of residuals: queries and keys both minus the list's centroid, which loses less
to cancellation than whole vectors would. Where the compiled kernel can, it multiplies int8 keys as they are stored.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from threading import Lock
from typing import Any

import numpy as np
import torch

from knnstore.datastore.mapped import MappedArray
from knnstore.index.compiled import CompiledNearest
from knnstore.index.grouping import by_list
from knnstore.index.lists import SegmentLists
from knnstore.index.nearest import Nearest, concatenate, spare_slots
from knnstore.index.quantiser import Float32, Int64, Quantiser
from knnstore.index.selection import new_nearest
from knnstore.index.tensors import TensorNearest, read_ahead
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

    ``mapped`` names the array that ``residuals`` reads. ``units``: the kernel takes the stored keys instead.
    ``device``: where the products and the survivors are, None for NumPy's memory.
    """

    parts: Sequence[SegmentLists]
    centroids: Float32
    mapped: Callable[[SegmentLists], MappedArray]
    residuals: ReadResiduals
    tags: ReadTags | None
    units: bool = False
    device: torch.device | None = None

    @property
    def largest_tag(self) -> int | None:
        """The largest tag that a key can have; None if none is asked for."""
        ends = [part.first_row + int(part.offsets[-1]) for part in self.parts]
        return max(ends, default=0) if self.tags else None

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor where the products are."""
        return tensor if self.device is None else tensor.to(self.device)

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


def join_in_threads(batch: Batch, lists: Lists, k: int, progress: Callable[[int], None] | None) -> Neighbours:
    """``join`` with the queries shared out to as many threads as torch uses; the result is the same."""
    lock = Lock()

    def advance(count: int) -> None:
        if progress:
            with lock:
                progress(count)

    if lists.device is not None:  # one queue of work for the device
        return join(batch, lists, k, advance)
    pairs = float(lists.live()[batch.probed].sum()) / len(lists.centroids)
    with query_threads(len(batch), pairs) as (pool, shares):
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
    nearest = _survivors(thresholds, k, lists, lists.largest_tag)
    asked = lists.place(torch.from_numpy(batch.queries))
    for tile, members, residuals in _probed_tiles(batch, lists, 1.0, spare_slots(k), advance):
        _offer(nearest, asked, lists, tile, members, residuals=residuals, tags_of=lists.tags)
    return nearest.neighbours(), nearest.found()


def _sampled_thresholds(batch: Batch, lists: Lists, k: int, held: Int64) -> Float32:
    """A distance for each query, float32 (n,), that k of the ``held`` keys it meets are very likely to lie below.

    The head of each list is a fair sample of it. Of a share f of the keys the f·k + 3√(f·k)-th nearest lies beyond
    the k-th nearest of all, but for three standard deviations.
    """
    room = k + spare_slots(k)
    if int(held.max(initial=0)) <= room:
        return _unlimited(len(batch))
    most = k * lists.sizes(_HEAD_SHARE)[batch.probed].sum(axis=1) / np.maximum(held, 1)
    heads = _survivors(_unlimited(len(batch)), int(_safe_ranks(most).max()) + 1, lists, None)
    sampled = np.zeros(len(batch), np.int64)
    asked = lists.place(torch.from_numpy(batch.queries))
    for tile, members, residuals in _probed_tiles(batch, lists, _HEAD_SHARE, spare_slots(heads.k), lambda _: None):
        sampled[members] += _offer(heads, asked, lists, tile, members, residuals=residuals, tags_of=None)
    ranks = _safe_ranks(k * sampled / np.maximum(held, 1))
    thresholds = np.take_along_axis(heads.neighbours().distances, ranks[:, None], 1)[:, 0]
    thresholds[held <= room] = np.inf
    return thresholds


def _survivors(
    thresholds: Float32, k: int, lists: Lists, largest_tag: int | None
) -> Nearest | CompiledNearest | TensorNearest:
    if lists.device is not None:
        return TensorNearest(thresholds, k, lists.device, tags=largest_tag is not None)
    return new_nearest(thresholds, k, largest_tag=largest_tag)


def _safe_ranks(expected: np.ndarray[Any, np.dtype[np.float64]]) -> Int64:
    ranks: Int64 = np.ceil(expected + 3 * np.sqrt(expected)).astype(np.int64)
    return ranks


def _offer(
    nearest: Nearest | CompiledNearest | TensorNearest,
    asked: torch.Tensor,
    lists: Lists,
    tile: Tile,
    members: Int64,
    *,
    residuals: torch.Tensor | None,
    tags_of: ReadTags | None,
) -> int:
    """Offer a tile's keys that aren't hidden to the queries that probe its list; return how many there are.

    ``asked``: all queries (n, d); ``residuals``: the tile's, if they have been read.
    """
    rows = tile.part.kept(tile.begin, tile.end)
    kept: slice | Int64 = slice(None) if rows is None else rows
    values = tile.part.values.rows(tile.begin, tile.end)[kept]
    if not len(values):
        return 0
    tags = tags_of(tile)[kept] if tags_of else None
    centroid = lists.centroids[tile.number]
    if lists.units and isinstance(nearest, CompiledNearest):
        keys, scales = tile.part.keys.rows(tile.begin, tile.end)[kept], tile.part.scales
        assert scales is not None
        nearest.offer_units(asked.numpy(), members, keys, scales, centroid, values=values, tags=tags)
        return len(values)
    residuals = lists.residuals(tile) if residuals is None else residuals
    if rows is not None:
        residuals = residuals[lists.place(torch.from_numpy(rows))]
    middle = lists.place(torch.from_numpy(centroid))
    for begin in range(0, len(members), _QUERIES_AT_ONCE):
        block = members[begin : begin + _QUERIES_AT_ONCE]
        local = asked[lists.place(torch.from_numpy(block))] - middle  # (m, d)
        scores, offsets = squared_distances(local, residuals), local.square().sum(1)
        if isinstance(nearest, TensorNearest):
            nearest.offer(block, scores, offsets, values, tags)
        else:
            nearest.offer(block, scores.numpy(), offsets.numpy(), values, tags)
    return len(values)


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


def _probed_tiles(
    batch: Batch, lists: Lists, share: float, most: int, advance: Callable[[int], None]
) -> Iterator[tuple[Tile, Int64, torch.Tensor | None]]:
    """Tiles of a share of each probed list and who probes it; for a device also the residuals, read ahead onto it."""

    def tiles() -> Iterator[tuple[Tile, Int64]]:
        groups = list(by_list(batch.probed, len(lists.centroids)))
        following = [number for number, _ in groups[1:]]
        for (number, members), upcoming in zip_longest(groups, following):
            if upcoming is not None and share == 1:
                lists.read_ahead(upcoming)
            for tile in _tiles(number, lists.parts, share, most):
                yield tile, members
            advance(len(members))

    if lists.device is None:
        return ((tile, members, None) for tile, members in tiles())
    read = read_ahead(tiles(), lambda item: lists.residuals(item[0]), lists.device)
    return ((tile, members, residuals) for (tile, members), residuals in read)


def _tiles(number: int, parts: Sequence[SegmentLists], share: float, most: int) -> Iterator[Tile]:
    """A share of a list, from its head, in tiles of at most ``most`` keys."""
    for part in parts:
        begin, end = part.bounds(number)
        end = begin + math.ceil((end - begin) * share)
        for start in range(begin, end, most):
            yield Tile(number, part, start, min(start + most, end))
