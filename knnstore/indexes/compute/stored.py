"""Inputs and results of an engine: stored keys in pieces of memory, queries and the lists they probe, candidates."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from knnstore.arrays import Float32, Int64
from knnstore.datastore.mapped import Pieces
from knnstore.files.local import LocalMap
from knnstore.neighbours import Neighbours

Residuals = Callable[[np.ndarray[Any, Any], int], torch.Tensor]
"""Converts stored keys or codes, (rows, …), of a list to keys minus the list's centroid: float32 (rows, d)."""


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Rows of one array in pieces of memory; each row has ``dtype`` and ``shape``."""

    pieces: Pieces
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()

    @classmethod
    def of_array(cls, array: np.ndarray[Any, Any], counts: Int64) -> "Column":
        """Return the rows of an array in memory, cut into pieces of ``counts`` rows, int64 (pieces,)."""
        array = np.ascontiguousarray(array)
        starts = (np.cumsum(counts) - counts) * (array.dtype.itemsize * math.prod(array.shape[1:]))
        ranges, maps = np.arange(len(counts)), {0: LocalMap(array.nbytes, array)}  # type: ignore[arg-type]
        pieces = Pieces(ranges, np.zeros_like(ranges), starts, counts, starts + array.ctypes.data, maps)
        return cls(pieces, array.dtype, array.shape[1:])

    def rows(self, piece: int, first: int = 0, last: int | None = None) -> np.ndarray[Any, Any]:
        """Return a view of rows ``[first, last)`` of a piece, or up to its end if ``last`` is None."""
        count = (int(self.pieces.counts[piece]) if last is None else last) - first
        items = math.prod(self.shape)
        memory = self.pieces.maps[int(self.pieces.chunks[piece])].memory
        start = int(self.pieces.starts[piece]) + first * items * self.dtype.itemsize
        return np.frombuffer(memory, self.dtype, count * items, start).reshape(count, *self.shape)

    def find(self, places: Int64) -> tuple[Int64, Int64]:
        """Return the piece and the row in that piece of each place among the rows of all pieces: int64 (n,) each."""
        ends = np.cumsum(self.pieces.counts)
        piece = np.searchsorted(ends, places, side="right")
        return piece, places - (ends - self.pieces.counts)[piece]


@dataclass(frozen=True, slots=True, eq=False)
class StoredLists:
    """Keys, or their codes, of some lists of one segment. All columns are divided into the same pieces.

    ``lists``: list of each piece, int64 (pieces,), ascending. ``scales``: scales of int8 keys, float32 (d,).
    ``tags``: numbers that are kept with the keys, plus ``first_tag``. ``hidden``: whether to skip a key, bool.
    """

    lists: Int64
    stored: Column
    residuals: Residuals
    scales: Float32 | None = None
    values: Column | None = None
    tags: Column | None = None
    first_tag: int = 0
    hidden: Column | None = None

    @property
    def in_units(self) -> bool:
        """Return whether they are int8 keys, which are compared in integers."""
        return self.stored.dtype == np.int8


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """Contiguous float32 ``queries`` (n, d) and ``centroids`` (lists, d), and which queries probe which list.

    List i is probed by the queries members[bounds[i] : bounds[i + 1]], int64. Its keys are near its centroid, which is
    subtracted from keys and queries to reduce cancellation.
    """

    queries: Float32
    centroids: Float32
    members: Int64
    bounds: Int64

    def of(self, number: int) -> Int64:
        """Return the queries that probe a list."""
        return self.members[self.bounds[number] : self.bounds[number + 1]]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The k nearest keys of each query, nearest first, with their tags.

    ``distances``: float32 (queries, k), inf where fewer than k were found. ``values``, ``tags``: int64 (queries, k),
    −1 likewise; None if they aren't kept.
    """

    distances: Float32
    values: Int64 | None
    tags: Int64 | None

    @property
    def columns(self) -> tuple[Float32, Int64 | None, Int64 | None]:
        """Return distances, values and tags."""
        return self.distances, self.values, self.tags

    def neighbours(self) -> Neighbours:
        """Return the candidates as neighbours, with their tags as rows."""
        assert self.values is not None
        return Neighbours(self.distances, self.values, self.tags)


def decode(stored: np.ndarray[Any, Any], scales: Float32 | None) -> Float32:
    """Return stored keys as float32 ``(n, d)``; torch converts float16 twenty times faster than NumPy."""
    keys: Float32 = torch.from_numpy(stored).to(torch.float32).numpy()
    if scales is not None:
        keys *= scales
    return keys


def key_residuals(scales: Float32 | None, centroids: Float32) -> Residuals:
    """Return a function that decodes a list's stored keys and subtracts its centroid, float32 (lists, d)."""
    return lambda stored, number: torch.from_numpy(decode(stored, scales)).sub_(torch.from_numpy(centroids[number]))
