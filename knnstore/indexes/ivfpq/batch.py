"""Inputs of a search: a batch of queries, and the lists that they probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.datastore.mapped import MappedArray
from knnstore.indexes.compute.protocols import Engine, Joins
from knnstore.indexes.compute.stored import Residuals, key_residuals
from knnstore.indexes.ivfpq.lists import SegmentLists
from knnstore.indexes.ivfpq.quantiser import Quantiser

Tags = Literal["rows", "positions"]
"""Tags kept with each key besides its value: its row in the store, or its place in list order over all segments."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Queries, float32 (n, d), and the lists that each probes, int64 (n, nprobe)."""

    queries: Float32
    probed: Int64

    def __len__(self) -> int:
        return len(self.queries)

    def select(self, queries: slice | Int64) -> "Batch":
        """Return some of the queries."""
        return Batch(self.queries[queries], self.probed[queries])


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """The lists of each segment to be searched, by their keys or, if ``coded``, by their codes.

    ``engine`` is used for lookups and reads, ``joins`` for joins. ``tags``: what to keep with each key.
    """

    parts: Sequence[SegmentLists]
    quantiser: Quantiser
    engine: Engine
    joins: Joins
    coded: bool = False
    tags: Tags | None = None

    def __len__(self) -> int:
        return len(self.quantiser.centroids)

    @property
    def largest_tag(self) -> int | None:
        """Return the largest possible tag of a key; None if no tags are kept."""
        ends = [part.first_row + int(part.offsets[-1]) for part in self.parts]
        return max(ends, default=0) if self.tags else None

    def array(self, part: SegmentLists) -> MappedArray:
        """Return the array that distances are computed from."""
        return part.codes if self.coded else part.keys

    def residuals(self, part: SegmentLists) -> Residuals:
        """Return the function that converts rows of that array to residuals."""
        if self.coded:
            return lambda codes, number: self.quantiser.decode(codes)
        return key_residuals(part.scales, self.quantiser.centroids)

    def sizes(self, share: float = 1.0) -> Int64:
        """Return the number of keys in each list, or a share of it, including hidden ones: int64 (nlist,)."""
        total = np.zeros(len(self), np.int64)
        for part in self.parts:
            total += np.ceil(np.diff(part.offsets) * share).astype(np.int64)
        return total

    def live(self) -> Int64:
        """Return the number of keys in each list that aren't hidden: int64 (nlist,)."""
        total: Int64 = np.sum([part.live for part in self.parts], axis=0)
        return total
