"""Rotating keys, as they are before they are coded."""

import numpy as np

from knnstore.arrays import Float32


def rotate(points: Float32, axes: Float32) -> Float32:
    """Return points (n, d) along the axes (d, kept): float32 (n, kept).

    Summed in float64, so that the codes that follow don't depend on how a product is cut into blocks and threads.
    """
    return np.asarray(points.astype(np.float64) @ axes.astype(np.float64), np.float32)
