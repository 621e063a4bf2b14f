"""The coarse quantiser and the product quantiser, stored as arrays; faiss objects are rebuilt from these."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np
import torch

from knnstore.datastore.arrays import create_array, read_all, write_chunk
from knnstore.datastore.keycodec import LARGEST
from knnstore.datastore.layout import QUANTIZER
from knnstore.errors import CorruptStoreError
from knnstore.indexes.compute.choice import host_engine
from knnstore.indexes.compute.coarse import CoarseLists
from knnstore.wording import command

if TYPE_CHECKING:
    from knnstore.arrays import Float32, Int64, Uint8
    from knnstore.indexes.compute.protocols import Filling
    from knnstore.indexes.ivfpq.plan import IvfPqFolder

PQ_LEVELS = 256
TASK = "quantizer"
# Numbers in the vectors that faiss trains on, from which on it uses a kernel that is about eight times faster.
_FAST_NUMBERS = 2**17


@dataclass(frozen=True, eq=False)
class Quantiser:
    """float32 ``cells`` (ncells, d), ``centroids`` (nlist, d), ``codebooks`` (pq_bytes, 256, d / pq_bytes).

    ``axes`` (d, kept): orthonormal axes along which residuals are encoded, in which case codebooks have ``kept``
    dimensions; None for the axes of the keys.
    """

    cells: Float32
    centroids: Float32
    codebooks: Float32
    axes: Float32 | None = None

    @cached_property
    def filling(self) -> Filling:
        """Return the ``Filling`` that assigns and encodes."""
        return host_engine().filling(self.coarse, self.codebooks, self.axes)

    @cached_property
    def coarse(self) -> CoarseLists:
        """Return the centroids of the lists, with their cells."""
        return CoarseLists(self.cells, self.centroids)

    def assign(self, keys: Float32) -> Int64:
        """Return the list of each key ``(n, d)``: int64 ``(n,)``."""
        return self.filling.assign(keys)

    def encode(self, keys: Float32, lists: Int64) -> Uint8:
        """Return PQ codes of the keys' residuals: uint8 ``(n, pq_bytes)``."""
        return self.filling.encode(keys, lists)

    def decode(self, codes: Uint8) -> torch.Tensor:
        """Return the residuals that the codes represent, float32 ``(n, d)``."""
        # row numbers in the concatenated codebooks, which need a single gather
        rows = torch.from_numpy(codes.astype(np.int32)) + self._first_rows
        decoded = self._codebook_rows[rows.flatten()].view(len(codes), self._decoded_dimension)
        return decoded if self.axes is None else decoded @ torch.from_numpy(self.axes).T

    def errors(self, keys: Float32, lists: Int64, codes: Uint8) -> Float32:
        """Return the squared distance of each key ``(n, d)`` to its reconstruction: float32 ``(n,)``."""
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


def train_codebooks(residuals: Float32, pq_bytes: int, seed: int) -> Float32:
    """Train codebooks ``(pq_bytes, 256, d / pq_bytes)`` on residuals ``(n, d)``; fewer than 256 are repeated."""
    count, dimension = residuals.shape
    width = dimension // pq_bytes
    codebooks = np.empty((pq_bytes, PQ_LEVELS, width), np.float32)
    rows = max(count, PQ_LEVELS)
    # zeros change no distance, and narrow vectors get enough of them to be trained on quickly
    padded = next((size for size in (8, 16, 32) if rows * size >= _FAST_NUMBERS), width)
    points = np.zeros((rows, max(width, padded)), np.float32)
    for part, codebook in enumerate(codebooks):
        points[:, :width] = residuals[np.arange(rows) % count, part * width : (part + 1) * width]
        product = faiss.ProductQuantizer(points.shape[1], 1, 8)
        product.cp.seed = seed
        product.cp.min_points_per_centroid = 1
        product.cp.max_points_per_centroid = 10**6
        product.train(points)
        codebook[:] = faiss.vector_to_array(product.centroids).reshape(PQ_LEVELS, -1)[:, :width]
    return codebooks


@dataclass(frozen=True, slots=True)
class TrainingErrors:
    """Mean squared quantisation errors of the training keys, ``seen``, and of similar keys held back, ``unseen``.

    ``unseen`` is None if there were too few keys to hold any back, and in older indexes.
    """

    seen: float
    unseen: float | None

    @property
    def expected(self) -> float:
        """Return the error to expect for later keys of the same kind."""
        return self.seen if self.unseen is None else self.unseen


def save_quantiser(folder: IvfPqFolder, quantiser: Quantiser, errors: TrainingErrors) -> None:
    """Write the arrays and commit them, with the errors among the commit's facts."""
    files = []
    for name, array in _arrays(quantiser).items():
        path = _path(folder, name)
        files += create_array(path, array.shape, len(array), array.dtype, "none")
        files.append(write_chunk(path, 0, array))
    unseen = {} if errors.unseen is None else {"unseen_error": errors.unseen}
    folder.commits.commit(TASK, list(dict.fromkeys(files)), error=errors.seen, **unseen)


def load_training_errors(folder: IvfPqFolder) -> TrainingErrors:
    """Return the errors that were measured when the index's quantisers were trained."""
    done = folder.commits.require(TASK)
    unseen = None if done.facts.get("unseen_error") is None else done.number("unseen_error")
    return TrainingErrors(float(done.number("error")), None if unseen is None else float(unseen))


def load_quantiser(folder: IvfPqFolder) -> Quantiser:
    """Return the index's quantisers. Raises CorruptStoreError if an array is damaged or differs from the plan."""
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
        array = read_all(_path(folder, name), shape, np.dtype(np.float32))
        if not (np.abs(array) < LARGEST).all():  # False for NaN too
            raise CorruptStoreError(
                f"{_path(folder, name)} contains NaN or a number beyond {LARGEST:g}: run "
                f"{command('index', overwrite=True)}"
            )
        arrays[name] = array
    return Quantiser(**arrays)


def _arrays(quantiser: Quantiser) -> dict[str, Float32]:
    arrays = {"cells": quantiser.cells, "centroids": quantiser.centroids, "codebooks": quantiser.codebooks}
    return arrays if quantiser.axes is None else arrays | {"axes": quantiser.axes}


def _path(folder: IvfPqFolder, name: str) -> Path:
    return folder.root / QUANTIZER / name
