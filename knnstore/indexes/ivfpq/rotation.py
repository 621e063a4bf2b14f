"""Train rotations applied before encoding: principal axes, and those of optimised product quantisation."""

import faiss
import numpy as np

from knnstore.arrays import Float32

_OPQ_ROWS = 16_384
_OPQ_ROUNDS = 12


def principal_axes(points: Float32, keep: int) -> Float32:
    """Return the ``keep`` principal axes of points (n, d), orthonormal, largest variance first: float32 (d, keep)."""
    moments = np.cov(points.astype(np.float64), rowvar=False).reshape(points.shape[1], -1)
    _, axes = np.linalg.eigh(moments)
    return np.ascontiguousarray(axes[:, ::-1][:, :keep], np.float32)


def optimised_axes(points: Float32, keep: int, pq_bytes: int, seed: int) -> Float32:
    """Return ``keep`` orthonormal axes, float32 (d, keep), that minimise the error of PQ codes of points (n, d).

    Ge et al., *Optimized Product Quantization*, CVPR 2013, as implemented in faiss.
    """
    matrix = faiss.OPQMatrix(points.shape[1], pq_bytes, keep)
    matrix.niter, matrix.niter_pq = _OPQ_ROUNDS, 4
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(len(points), min(len(points), _OPQ_ROWS), replace=False))
    matrix.train(np.ascontiguousarray(points[chosen]))
    axes = faiss.vector_to_array(matrix.A).reshape(keep, points.shape[1])
    return np.ascontiguousarray(axes.T, np.float32)
