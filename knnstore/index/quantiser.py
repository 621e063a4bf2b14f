"""The quantisers: which lists a key lies near, and its PQ code. Arrays on disk; faiss objects are rebuilt from them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import torch

from knnstore.datastore.arrays import create_array, read_all, write_chunk
from knnstore.datastore.keycodec import LARGEST
from knnstore.errors import CorruptStoreError
from knnstore.index.assignment import CompiledFilling
from knnstore.index.grouping import by_list
from knnstore.index.kernel import load_kernel
from knnstore.index.plan import IndexFolder
from knnstore.index.rotation import rotate

Float32 = np.ndarray[Any, np.dtype[np.float32]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]
Uint8 = np.ndarray[Any, np.dtype[np.uint8]]

PQ_LEVELS = 256
TASK = "quantizer"
_FLAT_LISTS, _FLAT_PROBED_LISTS = 256, 1024
_ASSIGN_CELLS = 4  # 99.8 % of the keys get their nearest list
_SEARCH_CELLS = 8


@dataclass(frozen=True, eq=False)
class Quantiser:
    """float32 ``cells`` (ncells, d), ``centroids`` (nlist, d), ``codebooks`` (pq_bytes, 256, d / pq_bytes).

    ``axes`` (d, kept): orthonormal, along which residuals are coded; None for those of the keys. Codebooks are then
    of ``kept`` dimensions.
    """

    cells: Float32
    centroids: Float32
    codebooks: Float32
    axes: Float32 | None = None

    def assign(self, keys: Float32) -> Int64:
        """The list of each key ``(n, d)``: int64 ``(n,)``."""
        if self._compiled is None:
            return self.assign_by_product(keys)
        lists, close = self._compiled.assign(keys, _ASSIGN_CELLS)
        if close.any():
            lists[close] = self.assign_by_product(keys[close])
        return lists

    def assign_by_product(self, keys: Float32) -> Int64:
        """The reference of ``assign``, by torch and faiss."""
        if self._is_flat(_ASSIGN_CELLS, _FLAT_LISTS):
            return np.asarray(self._flat.search(keys, 1)[1][:, 0])
        near = np.asarray(self._cell_index.search(keys, _ASSIGN_CELLS)[1])
        nearest = torch.full((len(keys),), torch.inf)
        lists = torch.empty(len(keys), dtype=torch.int64)
        points, norms = torch.from_numpy(keys), self._norms
        for cell, chose in by_list(near, len(self.cells)):
            numbers = torch.from_numpy(self._members[cell])
            if not len(numbers):
                continue
            members, centroids = torch.from_numpy(chose), torch.from_numpy(self.centroids[self._members[cell]])
            least, place = torch.addmm(norms[numbers], points[members], centroids.T, alpha=-2).min(dim=1)
            nearer = least < nearest[members]
            nearest[members[nearer]] = least[nearer]
            lists[members[nearer]] = numbers[place[nearer]]
        lost = torch.isinf(nearest).numpy()
        assigned: Int64 = lists.numpy()
        if lost.any():  # all their cells are empty
            assigned[lost] = self._flat.search(keys[lost], 1)[1][:, 0]
        return assigned

    def probe(self, queries: Float32, nprobe: int, cells: int = _SEARCH_CELLS) -> Int64:
        """The ``nprobe`` lists nearest to each query ``(n, d)``, nearest first: int64 ``(n, nprobe)``."""
        nlist = len(self.centroids)
        if nprobe >= nlist:
            return np.broadcast_to(np.arange(nlist), (len(queries), nlist))
        # cells for four times as many lists as are wanted, so that a query near a border still finds its own
        cells = max(cells, -(-4 * nprobe * len(self.cells) // nlist))
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
        """Whether comparing with every centroid is as quick as choosing cells first."""
        return len(self.centroids) <= lists or cells >= len(self.cells)

    def encode(self, keys: Float32, lists: Int64) -> Uint8:
        """PQ codes of the keys' residuals, uint8 ``(n, pq_bytes)``."""
        if self._compiled is None or self.axes is not None:
            return self.encode_by_faiss(keys, lists)
        codes, close = self._compiled.encode(keys, lists)
        if close.any():
            codes[close] = self.encode_by_faiss(keys[close], lists[close])
        return codes

    def encode_by_faiss(self, keys: Float32, lists: Int64) -> Uint8:
        """The reference of ``encode``."""
        residuals = keys - self.centroids[lists]
        return np.asarray(self._product.compute_codes(residuals if self.axes is None else rotate(residuals, self.axes)))

    def decode(self, codes: Uint8) -> torch.Tensor:
        """Residuals that the codes stand for, float32 ``(n, d)``."""
        # row number in the codebooks laid end to end; one gather for all of them
        rows = torch.from_numpy(codes.astype(np.int32)) + self._first_rows
        decoded = self._codebook_rows[rows.flatten()].view(len(codes), self._decoded_dimension)
        return decoded if self.axes is None else decoded @ torch.from_numpy(self.axes).T

    def errors(self, keys: Float32, lists: Int64, codes: Uint8) -> Float32:
        """Squared distance of each key ``(n, d)`` to what its list and code stand for: float32 ``(n,)``."""
        difference = torch.from_numpy(keys - self.centroids[lists]) - self.decode(codes)
        squared: Float32 = difference.square().sum(1).numpy()
        return squared

    @property
    def _decoded_dimension(self) -> int:
        return int(self.codebooks.shape[0] * self.codebooks.shape[2])

    @cached_property
    def _first_rows(self) -> torch.Tensor:
        return torch.arange(len(self.codebooks), dtype=torch.int32) * PQ_LEVELS

    @cached_property
    def _codebook_rows(self) -> torch.Tensor:
        return torch.from_numpy(self.codebooks).flatten(0, 1)

    @cached_property
    def _flat(self) -> Any:
        index = faiss.IndexFlatL2(self.centroids.shape[1])
        index.add(self.centroids)
        return index

    @cached_property
    def _cell_index(self) -> Any:
        cells = faiss.IndexFlatL2(self.cells.shape[1])
        cells.add(self.cells)
        return cells

    def cells_of_lists(self) -> Int64:
        """The cell nearest to each list's centroid: int64 ``(nlist,)``."""
        return np.asarray(self._cell_index.search(self.centroids, 1)[1][:, 0])

    @cached_property
    def _members(self) -> list[Int64]:
        """The numbers of each cell's centroids."""
        groups = dict(by_list(self.cells_of_lists()[:, None], len(self.cells)))
        return [groups.get(cell, np.empty(0, np.int64)) for cell in range(len(self.cells))]

    @cached_property
    def _norms(self) -> torch.Tensor:
        return torch.from_numpy(self.centroids).square().sum(1)

    @cached_property
    def _compiled(self) -> CompiledFilling | None:
        kernel = load_kernel()
        if kernel is None:
            return None
        flat = self._is_flat(_ASSIGN_CELLS, _FLAT_LISTS)
        cells, members = (self.cells[:1], [np.arange(len(self.centroids))]) if flat else (self.cells, self._members)
        codebooks = self.codebooks if self.axes is None else self.codebooks[:0]  # it codes along the keys' own axes
        return CompiledFilling(kernel, cells, self.centroids, members, codebooks)

    @property
    def is_compiled(self) -> bool:
        """Whether the kernel assigns and encodes: one thread a call, and as many calls at a time as there are cores."""
        return self._compiled is not None

    @cached_property
    def _by_cell(self) -> Any:
        cells = self._cell_index
        index = faiss.IndexIVFFlat(cells, self.cells.shape[1], len(self.cells))
        index.is_trained = True
        index.add(self.centroids)
        return index

    @cached_property
    def _product(self) -> Any:
        size, _, width = self.codebooks.shape
        product = faiss.ProductQuantizer(size * width, size, 8)
        faiss.copy_array_to_vector(self.codebooks.ravel(), product.centroids)
        return product


def train_codebooks(residuals: Float32, pq_bytes: int, seed: int) -> Float32:
    """Codebooks ``(pq_bytes, 256, d / pq_bytes)`` of residuals ``(n, d)``; few residuals are repeated up to 256."""
    count, dimension = residuals.shape
    points = np.ascontiguousarray(residuals[np.arange(max(count, PQ_LEVELS)) % count])
    product = faiss.ProductQuantizer(dimension, pq_bytes, 8)
    product.cp.seed = seed
    product.cp.min_points_per_centroid = 1
    product.cp.max_points_per_centroid = 10**6
    product.train(points)
    return np.asarray(faiss.vector_to_array(product.centroids)).reshape(pq_bytes, PQ_LEVELS, -1)


@dataclass(frozen=True, slots=True)
class TrainingErrors:
    """Mean squared quantisation errors of the keys ``seen`` by the training, and of some of their kind that were not.

    ``unseen`` is None where there were too few keys to keep any back, and in older indexes.
    """

    seen: float
    unseen: float | None

    @property
    def expected(self) -> float:
        """The error to expect of later keys of the same kind."""
        return self.seen if self.unseen is None else self.unseen


def save_quantiser(folder: IndexFolder, quantiser: Quantiser, errors: TrainingErrors) -> None:
    """Write the arrays and commit them, with the errors among the commit's facts."""
    files = []
    for name, array in _arrays(quantiser).items():
        path = folder.quantizer(name)
        files += create_array(path, array.shape, len(array), array.dtype, "none")
        files.append(write_chunk(path, 0, array))
    unseen = {} if errors.unseen is None else {"unseen_error": errors.unseen}
    folder.commits.commit(TASK, list(dict.fromkeys(files)), error=errors.seen, **unseen)


def load_training_errors(folder: IndexFolder) -> TrainingErrors:
    """The errors that were measured when the index's quantisers were made."""
    done = folder.commits.require(TASK)
    unseen = None if done.facts.get("unseen_error") is None else done.number("unseen_error")
    return TrainingErrors(float(done.number("error")), None if unseen is None else float(unseen))


def load_quantiser(folder: IndexFolder) -> Quantiser:
    """The index's quantisers. Raises CorruptStoreError if an array is damaged or of another shape than planned."""
    plan = folder.plan
    shapes = {
        "cells": (plan.cells, plan.dimension),
        "centroids": (plan.nlist, plan.dimension),
        "codebooks": (plan.pq_bytes, PQ_LEVELS, plan.coded_dimension // plan.pq_bytes),
    }
    if plan.rotation is not None:
        shapes["axes"] = (plan.dimension, plan.coded_dimension)
    arrays = {}
    for name, shape in shapes.items():
        array = read_all(folder.quantizer(name), shape, np.dtype(np.float32))
        if not (np.abs(array) < LARGEST).all():  # nor NaN
            raise CorruptStoreError(
                f"{folder.quantizer(name)} has a number beyond {LARGEST:g}, or none: run 'knnstore index --overwrite'"
            )
        arrays[name] = array
    return Quantiser(**arrays)


def _arrays(quantiser: Quantiser) -> dict[str, Float32]:
    arrays = {"cells": quantiser.cells, "centroids": quantiser.centroids, "codebooks": quantiser.codebooks}
    return arrays if quantiser.axes is None else arrays | {"axes": quantiser.axes}
