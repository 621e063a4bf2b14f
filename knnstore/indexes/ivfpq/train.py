"""Train quantisers on a sample: k-means for the lists, PQ codebooks for the codes."""

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
"""Maximum number of keys that the codebooks are trained on."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Training keys as stored, ``(n, d)``; they are decoded when used, which takes a fraction of the memory.

    ``scales``: float32 (segments, d), or None for float16. ``ends``: int64, end of each segment's rows in the sample.
    """

    stored: np.ndarray[Any, Any]
    scales: Float32 | None
    ends: Int64

    def take(self, rows: Int64) -> Float32:
        """Return float32 keys of some rows of the sample, ``(len(rows), d)``."""
        keys = decode(self.stored[rows], None)
        if self.scales is not None:
            keys *= self.scales[np.searchsorted(self.ends, rows, side="right")]
        return keys


def train(sample: Sample, plan: IvfPqPlan, advance: Callable[[int], None]) -> tuple[Quantiser, TrainingErrors]:
    """Return the quantisers of a plan, and their errors, with which errors of later keys are compared.

    The same plan and sample give the same bytes. ``advance`` is called with the number of keys done.
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
    """Return the rows of a sample to train on, and those held back: int64, ascending.

    The latter are evenly spread stretches rather than single rows: adjacent keys of a text are similar, so that a key
    whose neighbours are trained on isn't unseen.
    """
    length = unseen_rows(rows, nlist) // UNSEEN_STRETCHES
    starts = np.arange(UNSEEN_STRETCHES) * rows // UNSEEN_STRETCHES
    unseen = (starts[:, None] + np.arange(length)).ravel()
    return np.delete(np.arange(rows), unseen), unseen


def mean_error(quantiser: Quantiser, keys: Float32, lists: Int64) -> float:
    """Return the mean squared quantisation error of keys (n, d), n > 0, in their lists (n,)."""
    return float(quantiser.errors(keys, lists, quantiser.encode(keys, lists)).mean(dtype=np.float64))


def train_axes(plan: IvfPqPlan, residuals: Float32) -> Float32 | None:
    """Return the axes along which the plan encodes residuals (n, d), float32 (d, kept); None without a rotation."""
    if plan.rotation is None:
        return None
    kind, kept = parse_rotation(plan.rotation, plan.dimension)
    if kind == "PCA":
        return principal_axes(residuals, kept)
    return optimised_axes(residuals, kept, plan.pq_bytes, plan.seed)


def train_codes(plan: IvfPqPlan, residuals: Float32) -> tuple[Float32, Float32 | None]:
    """Return the codebooks of a plan, and the axes of its rotation, if any, trained on residuals (n, d)."""
    axes = train_axes(plan, residuals)
    return train_codebooks(residuals if axes is None else rotate(residuals, axes), plan.pq_bytes, plan.seed), axes
