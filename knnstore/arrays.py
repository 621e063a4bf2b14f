"""Names of array types; shapes are in the docstrings."""

from typing import Any

import numpy as np

Bool = np.ndarray[Any, np.dtype[np.bool_]]
Float32 = np.ndarray[Any, np.dtype[np.float32]]
Float64 = np.ndarray[Any, np.dtype[np.float64]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]
Uint8 = np.ndarray[Any, np.dtype[np.uint8]]
Uint32 = np.ndarray[Any, np.dtype[np.uint32]]
Uint64 = np.ndarray[Any, np.dtype[np.uint64]]
