"""Choosing lists and codes by the compiled kernel, with the reference's answers.

What rounding could decide, about one key in a thousand, is close, and the reference is asked.
"""

from typing import Any

import numpy as np

from knnstore.arrays import Bool, Float32, Int64, Uint8
from knnstore.indexes.compute.coarse import ASSIGN_CELLS
from knnstore.indexes.compute.kernel import address, addresses
from knnstore.indexes.compute.reference import ReferenceFilling

_PANEL = 32  # vectors that the kernel compares with at a time
# A score is a sum of d products; its rounding error is some √d · 2^-24 of the vectors' squares. This is 16 times that.
_SLACK = 2.0**-20


class NativeFilling:
    """``Filling``. Holds the vectors to choose from once more, as the kernel reads them."""

    in_threads = True

    def __init__(self, kernel: Any, reference: ReferenceFilling) -> None:
        self._kernel, self._reference = kernel, reference
        coarse = reference.coarse
        self._centroids = np.ascontiguousarray(coarse.centroids)
        # of each cell the numbers of its centroids; a single cell holds all
        members = [np.arange(len(coarse.centroids))] if coarse.is_flat else coarse.members
        self._cells = _panels(coarse.cells[: len(members)])
        sizes = np.array([-(-len(numbers) // _PANEL) for numbers in members])
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._numbers = np.full(int(self._starts[-1]) * _PANEL, -1, np.int64)
        dimension = self._centroids.shape[1]
        self._lists = np.empty((int(self._starts[-1]), 1 + dimension, _PANEL), np.float32)
        for start, numbers, size in zip(self._starts[:-1], members, sizes, strict=True):
            self._numbers[start * _PANEL : start * _PANEL + len(numbers)] = numbers
            self._lists[start : start + size] = _panels(self._centroids[numbers])
        # it codes along the keys' own axes
        codebooks = reference.codebooks if reference.axes is None else reference.codebooks[:0]
        self._codebooks = [_panels(part) for part in codebooks]
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
        """Return the nearest list of each key (n, d), int64 (n,), and which are close."""
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
        """Return PQ codes of the keys' residuals, uint8 (n, pq_bytes), and which of the keys are close."""
        keys, lists = np.ascontiguousarray(keys), np.ascontiguousarray(lists)
        codes = np.empty((len(keys), len(self._codebooks)), np.uint8)
        close = np.empty(len(keys), np.bool_)
        scratch = np.empty((64, keys.shape[1]), np.float32)
        inputs, outputs = addresses(lists, self._centroids), addresses(codes, close, scratch)
        parts = codes.shape[1], address(self._parts), self._part_slack
        self._kernel.encode_residuals(address(keys), *keys.shape, *inputs, *parts, *outputs)
        return codes, close


def _panels(vectors: Float32) -> Float32:
    """Vectors (n, d) as the kernel reads them: float32 (panels, 1 + d, 32), squared norms first, then −2 c."""
    count, dimension = vectors.shape
    size = -(-count // _PANEL)
    padded = np.zeros((size * _PANEL, 1 + dimension), np.float32)
    padded[:, 0] = np.inf
    padded[:count, 0] = np.einsum("nd,nd->n", vectors, vectors)
    padded[:count, 1:] = -2 * vectors
    return np.ascontiguousarray(padded.reshape(size, _PANEL, 1 + dimension).transpose(0, 2, 1))
