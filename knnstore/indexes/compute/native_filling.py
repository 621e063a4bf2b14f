"""Assign and encode keys with the compiled kernel, with the same results as the reference.

The kernel adds in another order than the reference. If its two best candidates for a key are so close that rounding
could decide between them, as for about one key in a thousand, the reference decides.
"""

from typing import Any

import numpy as np

from knnstore.arrays import Bool, Float32, Int64, Uint8
from knnstore.indexes.compute.coarse import ASSIGN_CELLS
from knnstore.indexes.compute.kernel import address, addresses
from knnstore.indexes.compute.reference import ReferenceFilling

# A score is a sum of d products. Its rounding error is about √d · 2^-24 of the squared norms; this is 16 times that.
_SLACK = 2.0**-20


class NativeFilling:
    """``Filling`` with the compiled kernel; holds a copy of the centroids and codebooks in the kernel's layout."""

    in_threads = True

    def __init__(self, kernel: Any, reference: ReferenceFilling) -> None:
        self._kernel, self._reference = kernel, reference
        coarse, panel = reference.coarse, int(kernel.panel_size())
        self._centroids = np.ascontiguousarray(coarse.centroids)
        # numbers of each cell's centroids; if the lists are flat, a single cell holds all of them
        members = [np.arange(len(coarse.centroids))] if coarse.is_flat else coarse.members
        self._cells = _panels(coarse.cells[: len(members)], panel)
        sizes = np.array([-(-len(numbers) // panel) for numbers in members])
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._numbers = np.full(int(self._starts[-1]) * panel, -1, np.int64)
        dimension = self._centroids.shape[1]
        self._lists = np.empty((int(self._starts[-1]), 1 + dimension, panel), np.float32)
        for start, numbers, size in zip(self._starts[:-1], members, sizes, strict=True):
            self._numbers[start * panel : start * panel + len(numbers)] = numbers
            self._lists[start : start + size] = _panels(self._centroids[numbers], panel)
        # the kernel can't rotate: with axes, the reference encodes
        codebooks = reference.codebooks if reference.axes is None else reference.codebooks[:0]
        self._codebooks = [_panels(part, panel) for part in codebooks]
        self._parts = np.concatenate(self._codebooks) if len(codebooks) else np.empty(0, np.float32)
        self._slack = _SLACK * dimension**0.5
        self._part_slack = _SLACK * (dimension / max(1, len(codebooks))) ** 0.5

    def assign(self, keys: Float32) -> Int64:
        """See ``Filling``."""
        lists, close = self.nearest_lists(keys)
        if close.any():
            lists[close] = self._reference.assign(keys[close])
        return lists

    def encode(self, keys: Float32, lists: Int64) -> Uint8:
        """See ``Filling``."""
        if self._reference.axes is not None:
            return self._reference.encode(keys, lists)
        codes, close = self.nearest_codes(keys, lists)
        if close.any():
            codes[close] = self._reference.encode(keys[close], lists[close])
        return codes

    def nearest_lists(self, keys: Float32) -> tuple[Int64, Bool]:
        """Return the nearest list of each key (n, d), int64 (n,), and whether the choice was close, bool (n,)."""
        keys, cells = np.ascontiguousarray(keys), len(self._starts) - 1
        probed = min(ASSIGN_CELLS, cells)
        lists, close = np.empty(len(keys), np.int64), np.empty(len(keys), np.bool_)
        scratch = np.empty(self._kernel.nearest_lists_bytes(len(keys), probed, cells), np.uint8)
        vectors = addresses(self._starts, self._lists, self._numbers)
        outputs = addresses(lists, close, scratch)
        shape = (*keys.shape, probed)
        self._kernel.nearest_lists(address(keys), *shape, address(self._cells), cells, *vectors, self._slack, *outputs)
        return lists, close

    def nearest_codes(self, keys: Float32, lists: Int64) -> tuple[Uint8, Bool]:
        """Return PQ codes of the keys' residuals, uint8 (n, pq_bytes), and whether any choice was close, bool (n,)."""
        keys, lists = np.ascontiguousarray(keys), np.ascontiguousarray(lists)
        codes = np.empty((len(keys), len(self._codebooks)), np.uint8)
        close = np.empty(len(keys), np.bool_)
        scratch = np.empty((64, keys.shape[1]), np.float32)
        inputs, outputs = addresses(lists, self._centroids), addresses(codes, close, scratch)
        parts = codes.shape[1], address(self._parts), self._part_slack
        self._kernel.encode_residuals(address(keys), *keys.shape, *inputs, *parts, *outputs)
        return codes, close


def _panels(vectors: Float32, panel: int) -> Float32:
    """Return vectors c (n, d) in the kernel's layout: float32 (panels, 1 + d, panel), squared norms, then −2 c."""
    count, dimension = vectors.shape
    size = -(-count // panel)
    padded = np.zeros((size * panel, 1 + dimension), np.float32)
    padded[:, 0] = np.inf
    padded[:count, 0] = np.einsum("nd,nd->n", vectors, vectors)
    padded[:count, 1:] = -2 * vectors
    return np.ascontiguousarray(padded.reshape(size, panel, 1 + dimension).transpose(0, 2, 1))
