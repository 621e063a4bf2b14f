"""Training on a sample: k-means, PQ codebooks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.indexes.compute.rotation import rotate
from knnstore.indexes.compute.stored import decode
from knnstore.indexes.ivfpq.kmeans import two_level_kmeans
from knnstore.indexes.ivfpq.plan import IvfPqPlan
from knnstore.indexes.ivfpq.quantiser import Quantiser, TrainingErrors, train_codebooks
from knnstore.indexes.ivfpq.rotation import optimised_axes, principal_axes
from knnstore.planning import UNSEEN_STRETCHES, parse_rotation, unseen_rows

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


def train(sample: Sample, plan: IvfPqPlan, advance: Callable[[int], None]) -> tuple[Quantiser, TrainingErrors]:
    """The quantisers of a plan, and their errors, against which those of later keys are held.

    The same bytes for the same plan and sample. ``advance`` is told of keys done.
    """
    seen, unseen = divide(len(sample.stored), plan.nlist)
    cells, centroids = two_level_kmeans(
        lambda places: sample.take(seen[places]), len(seen), plan.nlist, plan.cells, seed=plan.seed, advance=advance
    )
    generator = np.random.default_rng(plan.seed)
    chosen = np.sort(generator.choice(len(seen), min(len(seen), PQ_ROWS), replace=False))
    keys = sample.take(seen[chosen])
    unfinished = Quantiser(cells, centroids, np.empty((0, 0, 0), np.float32))
    lists = unfinished.assign(keys)
    trained = Quantiser(cells, centroids, *train_codes(plan, keys - centroids[lists]))
    others = sample.take(unseen)
    errors = TrainingErrors(
        mean_error(trained, keys, lists), mean_error(trained, others, trained.assign(others)) if len(unseen) else None
    )
    advance(len(unseen))
    return trained, errors


def divide(rows: int, nlist: int) -> tuple[Int64, Int64]:
    """The rows of a sample that are trained on, and those that are kept back: int64, ascending.

    These lie in stretches that are spread evenly: neighbours in a text are alike, so one of them tells of the other.
    """
    length = unseen_rows(rows, nlist) // UNSEEN_STRETCHES
    starts = np.arange(UNSEEN_STRETCHES) * rows // UNSEEN_STRETCHES
    unseen = (starts[:, None] + np.arange(length)).ravel()
    return np.delete(np.arange(rows), unseen), unseen


def mean_error(quantiser: Quantiser, keys: Float32, lists: Int64) -> float:
    """The mean squared quantisation error of keys (n, d), n > 0, in their lists (n,)."""
    return float(quantiser.errors(keys, lists, quantiser.encode(keys, lists)).mean(dtype=np.float64))


def train_axes(plan: IvfPqPlan, residuals: Float32) -> Float32 | None:
    """The axes along which the plan codes residuals (n, d), float32 (d, kept); None for those of the keys."""
    if plan.rotation is None:
        return None
    kind, kept = parse_rotation(plan.rotation, plan.dimension)
    if kind == "PCA":
        return principal_axes(residuals, kept)
    return optimised_axes(residuals, kept, plan.pq_bytes, plan.seed)


def train_codes(plan: IvfPqPlan, residuals: Float32) -> tuple[Float32, Float32 | None]:
    """Codebooks of a plan's codes, and the axes along which they are, trained on residuals (n, d)."""
    axes = train_axes(plan, residuals)
    return train_codebooks(residuals if axes is None else rotate(residuals, axes), plan.pq_bytes, plan.seed), axes
