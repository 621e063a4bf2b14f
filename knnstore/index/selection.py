"""Who keeps the survivors of a join: the compiled kernel where there is one, else NumPy."""

import numpy as np

from knnstore.index import compiled
from knnstore.index.compiled import CompiledNearest
from knnstore.index.kernel import load_kernel
from knnstore.index.nearest import Nearest
from knnstore.neighbours import Float32, Int64

_LARGEST_TAG = 2**32 - 1


def new_nearest(
    thresholds: Float32, k: int, *, values: bool = True, largest_tag: int | None = None
) -> Nearest | CompiledNearest:
    """Keeps the k nearest below the thresholds, float32 (n,), and tags from 0 to ``largest_tag`` unless None.

    ``values``: whether theirs are asked for.
    """
    kernel = load_kernel()
    tags = largest_tag is not None
    if kernel is None or (largest_tag or 0) > _LARGEST_TAG:
        return Nearest(thresholds, k, tags=tags)
    return CompiledNearest(kernel, thresholds, k, tags=tags, values=values)


def smallest(distances: Float32, k: int) -> Int64:
    """Where the k smallest finite ones of some distances, float32 (n,), lie, nearest first; ties go to the first."""
    if load_kernel() is not None:
        return compiled.smallest(np.ascontiguousarray(distances), k)
    if k < len(distances):
        limit = np.partition(distances, k - 1)[k - 1]
        chosen = np.flatnonzero(distances <= limit)
    else:
        chosen = np.arange(len(distances))
    order = chosen[np.argsort(distances[chosen], kind="stable")][:k]
    return order[np.isfinite(distances[order])]


def takes_units(dtype: np.dtype[np.generic]) -> bool:
    """Whether tiles of keys of this dtype can be offered as they are stored."""
    kernel = load_kernel()
    return kernel is not None and dtype == np.int8 and bool(kernel.int8_products())
