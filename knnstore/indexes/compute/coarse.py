"""The coarse quantiser: the centroids of the lists, grouped into cells, searched with faiss and torch."""

from functools import cached_property
from typing import Any

import faiss
import numpy as np
import torch

from knnstore.arrays import Float32, Int64
from knnstore.indexes.compute.grouping import by_list

_FLAT_LISTS, _FLAT_PROBED_LISTS = 256, 1024
_SEARCH_CELLS = 8
ASSIGN_CELLS = 4
"""Number of nearest cells in which the list of a key is chosen: 99.8 % of the keys get their nearest list."""


class CoarseLists:
    """Cells and the centroids in them: float32 ``cells`` (ncells, d) and ``centroids`` (nlist, d).

    With many lists, a vector is compared with the cells first, and then with the centroids of its nearest cells only.
    """

    def __init__(self, cells: Float32, centroids: Float32) -> None:
        self.cells, self.centroids = cells, centroids

    @property
    def is_flat(self) -> bool:
        """Return whether keys are compared with every centroid, since that is as fast as choosing cells first."""
        return self._is_flat(ASSIGN_CELLS, _FLAT_LISTS)

    @cached_property
    def members(self) -> list[Int64]:
        """Return the numbers of each cell's centroids."""
        groups = dict(by_list(self.cells_of_lists()[:, None], len(self.cells)))
        return [groups.get(cell, np.empty(0, np.int64)) for cell in range(len(self.cells))]

    def cells_of_lists(self) -> Int64:
        """Return the cell nearest to each list's centroid: int64 ``(nlist,)``."""
        return np.asarray(self._cell_index.search(self.centroids, 1)[1][:, 0])

    def assign(self, keys: Float32) -> Int64:
        """Return the list of each key ``(n, d)``: int64 ``(n,)``."""
        if self.is_flat:
            return np.asarray(self._flat.search(keys, 1)[1][:, 0])
        near = np.asarray(self._cell_index.search(keys, ASSIGN_CELLS)[1])
        nearest = torch.full((len(keys),), torch.inf)
        lists = torch.empty(len(keys), dtype=torch.int64)
        points, norms = torch.from_numpy(keys), self._norms
        for cell, rows in by_list(near, len(self.cells)):
            numbers = torch.from_numpy(self.members[cell])
            if not len(numbers):
                continue
            members, centroids = torch.from_numpy(rows), torch.from_numpy(self.centroids[self.members[cell]])
            least, place = torch.addmm(norms[numbers], points[members], centroids.T, alpha=-2).min(dim=1)
            nearer = least < nearest[members]
            nearest[members[nearer]] = least[nearer]
            lists[members[nearer]] = numbers[place[nearer]]
        lost = torch.isinf(nearest).numpy()
        assigned: Int64 = lists.numpy()
        if lost.any():  # all their cells are empty
            assigned[lost] = self._flat.search(keys[lost], 1)[1][:, 0]
        return assigned

    def probe(self, queries: Float32, nprobe: int) -> Int64:
        """Return the ``nprobe`` lists nearest to each query ``(n, d)``, nearest first: int64 ``(n, nprobe)``."""
        nlist = len(self.centroids)
        if nprobe >= nlist:
            return np.broadcast_to(np.arange(nlist), (len(queries), nlist))
        # enough cells for four times as many lists, so that a query near the border of a cell finds its nearest lists
        cells = max(_SEARCH_CELLS, -(-4 * nprobe * len(self.cells) // nlist))
        if self._is_flat(cells, _FLAT_PROBED_LISTS):
            return np.asarray(self._flat.search(queries, nprobe)[1])
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = cells
        lists = np.asarray(self._by_cell.search(queries, nprobe, params=parameters)[1])
        short = np.flatnonzero(lists[:, -1] < 0)  # their cells hold too few lists
        if len(short):
            lists[short] = self._flat.search(queries[short], nprobe)[1]
        return lists

    def _is_flat(self, cells: int, lists: int) -> bool:
        return len(self.centroids) <= lists or cells >= len(self.cells)

    @cached_property
    def _norms(self) -> torch.Tensor:
        return torch.from_numpy(self.centroids).square().sum(1)

    @cached_property
    def _flat(self) -> Any:
        return _flat_index(self.centroids)

    @cached_property
    def _cell_index(self) -> Any:
        return _flat_index(self.cells)

    @cached_property
    def _by_cell(self) -> Any:
        index = faiss.IndexIVFFlat(self._cell_index, self.cells.shape[1], len(self.cells))
        index.is_trained = True
        index.add(self.centroids)
        return index


def _flat_index(vectors: Float32) -> Any:
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    return index
