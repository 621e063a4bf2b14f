"""Choosing lists and codes by the compiled kernel, with the reference's answers.

What rounding could decide, about one key in a thousand, is said to be close, and the caller asks the reference.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from knnstore.neighbours import Float32, Int64

Bool = np.ndarray[Any, np.dtype[np.bool_]]
Uint8 = np.ndarray[Any, np.dtype[np.uint8]]

_PANEL = 32  # vectors that the kernel compares with at a time
_MOST_PROBED = 32
# A score is a sum of d products; its rounding error is some √d · 2^-24 of the vectors' squares. This is 16 times that.
_SLACK = 2.0**-20


class CompiledFilling:
    """Lists and codes of keys. Holds the vectors to choose from once more, as the kernel reads them."""

    def __init__(
        self, kernel: Any, cells: Float32, centroids: Float32, members: Sequence[Int64], codebooks: Float32
    ) -> None:
        """``members``: of each of the cells (ncells, d) the numbers of its centroids; a single one holds all."""
        self._kernel, self._centroids = kernel, np.ascontiguousarray(centroids)
        self._cells = _panels(cells)
        sizes = np.array([-(-len(numbers) // _PANEL) for numbers in members])
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._numbers = np.full(int(self._starts[-1]) * _PANEL, -1, np.int64)
        dimension = centroids.shape[1]
        self._lists = np.empty((int(self._starts[-1]), 1 + dimension, _PANEL), np.float32)
        for start, numbers, size in zip(self._starts[:-1], members, sizes, strict=True):
            self._numbers[start * _PANEL : start * _PANEL + len(numbers)] = numbers
            self._lists[start : start + size] = _panels(centroids[numbers])
        self._codebooks = [_panels(part) for part in codebooks]
        self._parts = np.concatenate(self._codebooks) if len(codebooks) else np.empty(0, np.float32)
        self._slack = _SLACK * dimension**0.5
        self._part_slack = _SLACK * (dimension / max(1, len(codebooks))) ** 0.5

    def assign(self, keys: Float32, probed: int) -> tuple[Int64, Bool]:
        """The nearest list of each key (n, d) in the ``probed`` nearest cells: int64 (n,), and which are close."""
        keys, cells = np.ascontiguousarray(keys), len(self._starts) - 1
        probed = min(probed, cells)
        lists, close = np.empty(len(keys), np.int64), np.empty(len(keys), np.bool_)
        scratch = np.empty(self._kernel.nearest_lists_bytes(len(keys), probed, cells), np.uint8)
        self._kernel.nearest_lists(
            keys.ctypes.data,
            *keys.shape,
            probed,
            self._cells.ctypes.data,
            cells,
            self._starts.ctypes.data,
            self._lists.ctypes.data,
            self._numbers.ctypes.data,
            self._slack,
            lists.ctypes.data,
            close.ctypes.data,
            scratch.ctypes.data,
        )
        return lists, close

    def encode(self, keys: Float32, lists: Int64) -> tuple[Uint8, Bool]:
        """PQ codes of the keys' residuals, uint8 (n, pq_bytes), and which of the keys are close."""
        keys, lists = np.ascontiguousarray(keys), np.ascontiguousarray(lists)
        codes = np.empty((len(keys), len(self._codebooks)), np.uint8)
        close = np.empty(len(keys), np.bool_)
        scratch = np.empty((64, keys.shape[1]), np.float32)
        self._kernel.encode_residuals(
            keys.ctypes.data,
            *keys.shape,
            lists.ctypes.data,
            self._centroids.ctypes.data,
            codes.shape[1],
            self._parts.ctypes.data,
            self._part_slack,
            codes.ctypes.data,
            close.ctypes.data,
            scratch.ctypes.data,
        )
        return codes, close


def takes_probed(probed: int) -> bool:
    """Whether the kernel can choose so many cells."""
    return probed <= _MOST_PROBED


def _panels(vectors: Float32) -> Float32:
    """Vectors (n, d) as the kernel reads them: float32 (panels, 1 + d, 32), squared norms first, then −2 c."""
    count, dimension = vectors.shape
    size = -(-count // _PANEL)
    padded = np.zeros((size * _PANEL, 1 + dimension), np.float32)
    padded[:, 0] = np.inf
    padded[:count, 0] = np.einsum("nd,nd->n", vectors, vectors)
    padded[:count, 1:] = -2 * vectors
    return np.ascontiguousarray(padded.reshape(size, _PANEL, 1 + dimension).transpose(0, 2, 1))
