"""Rotate vectors before they are encoded."""

import numpy as np

from knnstore.arrays import Float32


def rotate(points: Float32, axes: Float32) -> Float32:
    """Return the coordinates of points (n, d) along the axes (d, kept): float32 (n, kept).

    Sums are float64, so that the codes don't depend on how the product is divided into blocks and threads.
    """
    return np.asarray(points.astype(np.float64) @ axes.astype(np.float64), np.float32)
