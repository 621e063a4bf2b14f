"""What a search goes through: a batch of queries, the lists that they probe, and tiles of those.

A tile is what is multiplied at once: some consecutive keys of one list of one segment.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch

from knnstore.datastore.mapped import MappedArray
from knnstore.index.grouping import by_list
from knnstore.index.lists import SegmentLists
from knnstore.index.quantiser import Float32, Int64, Quantiser
from knnstore.index.tensors import read_ahead
from knnstore.index.train import decode


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


def probed_tiles(
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
