"""Who keeps the survivors of a join: the compiled kernel where there is one, else NumPy."""

import numpy as np

from knnstore.index.compiled import CompiledNearest
from knnstore.index.kernel import load_kernel
from knnstore.index.nearest import Nearest
from knnstore.neighbours import Float32

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


def takes_units(dtype: np.dtype[np.generic]) -> bool:
    """Whether tiles of keys of this dtype can be offered as they are stored."""
    kernel = load_kernel()
    return kernel is not None and dtype == np.int8 and bool(kernel.int8_products())
