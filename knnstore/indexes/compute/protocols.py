"""What an index asks of whoever computes for it.

Every operation has a reference in NumPy, torch and faiss, and every other implementation is held to its answers: to
the same bits, but for products of int8 keys, whose distances may differ in about the fifth digit.
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
"""Values and tags of some keys, unsigned integers (t,) each, or None where they aren't kept."""
Groups = Iterable[Sequence["StoredLists"]]
_FEWEST_SPARE = 512


class TopK(Protocol):
    """Keeps the k nearest of the keys that are offered to each of n queries and lie below its threshold.

    Ties go to the key that was offered first. Values and tags are kept only if that was asked for.
    """

    k: int

    def offer(self, members: Int64, scores: torch.Tensor, offsets: torch.Tensor, numbers: Numbers) -> None:
        """Offer t keys to m queries.

        Args:
            members: the queries, int64 (m,), each once.
            scores: float32 (m, t), t <= spare_slots(k); the distance is score + offset.
            offsets: float32 (m,).
            numbers: values and tags.
        """

    def offer_lists(self, groups: Groups, probes: Probes) -> None:
        """Offer lists of some segments, one group after the other, to the queries that probe them.

        In a group a list of all segments comes before the next list. The next group is taken from the iterator when
        the last is done with, or while it is being worked on.
        """

    def counts(self) -> Int64:
        """Return how many keys each query has, at most k: int64 (n,)."""

    def candidates(self) -> Candidates:
        """Return the k nearest of each query."""


class Joins(Protocol):
    """Compares many queries with many keys."""

    in_threads: bool
    """Whether queries are shared out to threads, each with a ``TopK`` of its own."""

    def scans(self, dtype: np.dtype[Any]) -> bool:
        """Return whether keys of this dtype are compared as they are stored, whole groups of lists in one call."""

    def memory(self, allowed: int) -> int:
        """Return the bytes that a join may take where ``allowed`` bytes are allowed on the host."""

    def top_k(self, thresholds: Float32, k: int, *, values: bool = True, largest_tag: int | None = None) -> TopK:
        """Return one for queries with these thresholds, float32 (n,), and tags up to ``largest_tag``, if any."""


class Lookups(Protocol):
    """Answers one query at a time."""

    def squared_distances(self, query: Float32, keys: Column, scales: Float32 | None) -> Float32:
        """Return those of a query (d,) to stored keys: float32 (keys,)."""

    def smallest(self, distances: Float32, k: int) -> Int64:
        """Return the places of the k smallest finite distances, float32 (n,), nearest first; ties in order."""

    def take(self, column: Column, places: Int64) -> np.ndarray[Any, Any]:
        """Return the numbers at some places, (n,), of a column whose rows are numbers."""


class Reads(Protocol):
    """Reads mapped memory."""

    def read_ahead(self, pieces: Pieces, begins: Int64, ends: Int64) -> None:
        """Ask the operating system for bytes ``[begins, ends)``, int64 (pieces,), of each piece's map."""

    def first_damaged(self, data: Uint8, begins: Int64, sizes: Int64, sums: Uint32) -> int | None:
        """Return the first of some blocks of the data whose CRC-32C is not the given one; None if all are whole."""


class Filling(Protocol):
    """Chooses the list and the PQ code of each key."""

    in_threads: bool
    """Whether a call keeps to one thread, so that callers share out blocks of keys to several."""

    def assign(self, keys: Float32) -> Int64:
        """Return the list of each key ``(n, d)``: int64 ``(n,)``."""

    def encode(self, keys: Float32, lists: Int64) -> Uint8:
        """Return PQ codes of the keys' residuals: uint8 ``(n, pq_bytes)``."""


class Engine(Joins, Lookups, Reads, Protocol):
    """All that a host computes."""

    def filling(self, coarse: CoarseLists, codebooks: Float32, axes: Float32 | None) -> Filling:
        """Return who fills the lists of ``coarse``, with codes of these codebooks along these axes."""


def spare_slots(k: int) -> int:
    """Return the room beyond k in a query's row of ``TopK``, which is the most keys that may be offered at once."""
    return max(k, _FEWEST_SPARE)


def query_bytes(k: int, *, tags: bool) -> int:
    """Return the bytes that ``TopK`` holds per query."""
    return (k + spare_slots(k)) * (20 if tags else 12) + 16
