"""Training on a sample: k-means, PQ codebooks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from knnstore.index.kmeans import Float32, Int64, two_level_kmeans
from knnstore.index.plan import IndexPlan
from knnstore.index.quantiser import Quantiser, train_codebooks
from knnstore.index.rotation import optimised_axes, principal_axes, rotate
from knnstore.planning import parse_rotation

PQ_ROWS = 65_536
"""Keys, at most, that the codebooks are trained on."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Training keys as they are stored, ``(n, d)``, decoded where they are used: a fraction of the memory.

    ``scales`` float32 (segments, d), or None for float16; ``ends`` int64: the sample's rows of each segment end there.
    """

    stored: np.ndarray[Any, Any]
    scales: Float32 | None
    ends: Int64

    def take(self, rows: Int64) -> Float32:
        """Float32 keys of the sample's rows, ``(len(rows), d)``."""
        keys = decode(self.stored[rows], None)
        if self.scales is not None:
            keys *= self.scales[np.searchsorted(self.ends, rows, side="right")]
        return keys


def decode(stored: np.ndarray[Any, Any], scales: Float32 | None) -> Float32:
    """Float32 keys ``(n, d)`` of stored ones; torch converts float16 twenty times faster than NumPy."""
    keys: Float32 = torch.from_numpy(stored).to(torch.float32).numpy()
    if scales is not None:
        keys *= scales
    return keys


def train(sample: Sample, plan: IndexPlan, advance: Callable[[int], None]) -> tuple[Quantiser, float]:
    """The quantisers of a plan, and their mean squared error on the sample, against which later keys are measured.

    The same bytes for the same plan and sample. ``advance`` is told of keys done.
    """
    rows = len(sample.stored)
    cells, centroids = two_level_kmeans(sample.take, rows, plan.nlist, plan.cells, seed=plan.seed, advance=advance)
    generator = np.random.default_rng(plan.seed)
    chosen = np.sort(generator.choice(rows, min(rows, PQ_ROWS), replace=False))
    keys = sample.take(chosen)
    unfinished = Quantiser(cells, centroids, np.empty((0, 0, 0), np.float32))
    lists = unfinished.assign(keys)
    trained = Quantiser(cells, centroids, *train_codes(plan, keys - centroids[lists]))
    return trained, float(trained.errors(keys, lists, trained.encode(keys, lists)).mean(dtype=np.float64))


def train_axes(plan: IndexPlan, residuals: Float32) -> Float32 | None:
    """The axes along which the plan codes residuals (n, d), float32 (d, kept); None for those of the keys."""
    if plan.rotation is None:
        return None
    kind, kept = parse_rotation(plan.rotation, plan.dimension)
    if kind == "PCA":
        return principal_axes(residuals, kept)
    return optimised_axes(residuals, kept, plan.pq_bytes, plan.seed)


def train_codes(plan: IndexPlan, residuals: Float32) -> tuple[Float32, Float32 | None]:
    """Codebooks of a plan's codes, and the axes along which they are, trained on residuals (n, d)."""
    axes = train_axes(plan, residuals)
    return train_codebooks(residuals if axes is None else rotate(residuals, axes), plan.pq_bytes, plan.seed), axes
