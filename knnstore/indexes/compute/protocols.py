"""Protocols of the engines that compute for an index.

Every operation has a reference implementation in NumPy, torch and faiss. All other implementations must return the
same bits for the same scores and for int8 keys, on every processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from knnstore.arrays import Float32, Int64, Uint8, Uint32
    from knnstore.datastore.mapped import Pieces
    from knnstore.indexes.compute.coarse import CoarseLists
    from knnstore.indexes.compute.stored import Candidates, Column, Probes, StoredLists

Numbers = tuple[np.ndarray[Any, Any] | None, np.ndarray[Any, Any] | None]
"""Values and tags of some keys, unsigned integers (t,) each; None if they aren't kept."""
Groups = Iterable[Sequence["StoredLists"]]
_FEWEST_SPARE = 512


class TopK(Protocol):
    """Keeps, for each of n queries, the k nearest of the offered keys whose distance is below the query's threshold.

    Ties go to the key that was offered first. Values and tags are kept only if requested.
    """

    k: int

    def offer(self, members: Int64, scores: torch.Tensor, offsets: torch.Tensor, numbers: Numbers) -> None:
        """Offer t keys to m queries.

        Args:
            members: the queries, int64 (m,), without duplicates.
            scores: float32 (m, t), t <= spare_slots(k); the distance is score + offset.
            offsets: float32 (m,).
            numbers: values and tags.
        """

    def offer_lists(self, groups: Groups, probes: Probes) -> None:
        """Offer lists of some segments, group by group, to the queries that probe them.

        Within a group, all segments of a list come before the next list. The next group is taken from the iterator
        after the previous one has been processed, or during that.
        """

    def counts(self) -> Int64:
        """Return the number of keys kept for each query, at most k: int64 (n,)."""

    def candidates(self) -> Candidates:
        """Return the k nearest of each query."""


class Joins(Protocol):
    """Compares many queries with many keys."""

    in_threads: bool
    """Whether queries are divided among threads, each with its own ``TopK``."""

    def scans(self, dtype: np.dtype[Any]) -> bool:
        """Return whether keys of this dtype are compared as stored, a whole group of lists per call."""

    def memory(self, allowed: int) -> int:
        """Return the bytes that a join may use if ``allowed`` bytes are allowed on the host."""

    def top_k(self, thresholds: Float32, k: int, *, values: bool = True, largest_tag: int | None = None) -> TopK:
        """Return a ``TopK`` for queries with these thresholds, float32 (n,), and tags up to ``largest_tag``, if any."""


class Lookups(Protocol):
    """Searches for one query at a time."""

    def squared_distances(self, query: Float32, keys: Column, scales: Float32 | None, centroids: Float32) -> Float32:
        """Return the squared distances of a query (d,) to stored keys: float32 (keys,).

        ``centroids``: float32 (pieces, d), the centroid of each piece's list. The distances of int8 keys are those of a
        join.
        """

    def smallest(self, distances: Float32, k: int) -> Int64:
        """Return the indices of the k smallest finite distances, float32 (n,), nearest first; ties in order."""

    def take(self, column: Column, places: Int64) -> np.ndarray[Any, Any]:
        """Return the rows at ``places``, (n,), of a column whose rows are numbers."""


class Reads(Protocol):
    """Reads mapped memory."""

    def read_ahead(self, pieces: Pieces, begins: Int64, ends: Int64) -> None:
        """Ask the operating system to read bytes ``[begins, ends)``, int64 (pieces,), of each piece's map."""

    def first_damaged(self, data: Uint8, begins: Int64, sizes: Int64, sums: Uint32) -> int | None:
        """Return the index of the first block of the data whose CRC-32C isn't the given one; None if all match."""


class Filling(Protocol):
    """Computes the list and the PQ code of each key."""

    in_threads: bool
    """Whether a call uses a single thread, so that callers divide blocks of keys among several."""

    def assign(self, keys: Float32) -> Int64:
        """Return the list of each key ``(n, d)``: int64 ``(n,)``."""

    def encode(self, keys: Float32, lists: Int64) -> Uint8:
        """Return PQ codes of the keys' residuals: uint8 ``(n, pq_bytes)``."""


class Engine(Joins, Lookups, Reads, Protocol):
    """All operations of a host."""

    def filling(self, coarse: CoarseLists, codebooks: Float32, axes: Float32 | None) -> Filling:
        """Return a ``Filling`` for the lists of ``coarse``, with codes of these codebooks along these axes, if any."""


def spare_slots(k: int) -> int:
    """Return the slots beyond k in a query's row of ``TopK``: the maximum number of keys that are offered at once."""
    return max(k, _FEWEST_SPARE)


def query_bytes(k: int, *, tags: bool) -> int:
    """Return the bytes that ``TopK`` holds per query."""
    return (k + spare_slots(k)) * (20 if tags else 12) + 16
