"""The encoding of stored keys: float16, or int8 with one scale per dimension."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from knnstore.arrays import Float32
from knnstore.errors import NumericsError, UsageError

KeyDtype = Literal["float16", "int8"]

# The scales come from a sample; this headroom keeps nearly all other keys from being clipped.
_HEADROOM = 1.25
INT8_LIMIT = 127
_FLOAT16_LIMIT = 65504.0
LARGEST = 1e15
"""Upper bound of the numbers in keys, centroids and queries: their distances in 2^20 dimensions fit float32."""


@dataclass(frozen=True, slots=True, eq=False)
class KeyCodec:
    """Encode float32 keys ``(n, d)`` in the stored dtype, and decode them.

    ``scales`` is None for float16; for int8 it is float32 ``(d,)``: stored units u represent ``u * scales``.
    """

    dtype: KeyDtype
    scales: Float32 | None = None

    def __post_init__(self) -> None:
        if self.dtype not in get_args(KeyDtype):
            raise UsageError(f"key dtype {self.dtype!r} is none of {', '.join(get_args(KeyDtype))}")
        if (self.scales is None) != (self.dtype == "float16"):
            raise UsageError(f"key dtype {self.dtype} {'has no' if self.dtype == 'float16' else 'needs'} scales")

    @property
    def stored(self) -> np.dtype[Any]:
        """Return the NumPy dtype on disk."""
        return stored_dtype(self.dtype)

    def encode(self, keys: Float32) -> np.ndarray[Any, Any]:
        """Return keys ``(n, d)`` in stored form. Raises NumericsError, with the first such row, if one doesn't fit."""
        largest = np.abs(keys).max(axis=1, initial=0)
        limit = LARGEST if self.dtype == "int8" else _FLOAT16_LIMIT
        if not (largest < limit).all():  # also true if there is a NaN
            row = int(np.argmin(largest < limit))
            raise NumericsError(f"key {row} has an activation of {largest[row]} which {self.dtype} can't hold")
        if self.scales is None:
            return keys.astype(np.float16)
        units: Float32 = np.clip(np.rint(keys / self.scales), -INT8_LIMIT, INT8_LIMIT)
        return units.astype(np.int8)

    def decode(self, stored: np.ndarray[Any, Any]) -> Float32:
        """Return the float32 keys ``(n, d)`` of stored ones."""
        keys: Float32 = stored.astype(np.float32)
        return keys if self.scales is None else keys * self.scales


def stored_dtype(dtype: KeyDtype) -> np.dtype[Any]:
    """Return the NumPy dtype of keys on disk."""
    return np.dtype(dtype)


def scales_of(sample: Float32) -> Float32:
    """Return the int8 scale of each dimension, float32 ``(d,)``, from a sample of keys ``(n, d)``.

    There is one scale per dimension rather than per vector, because large LMs have outlier dimensions that would use
    up the levels of a vector's scale.
    """
    largest = np.abs(sample).max(axis=0, initial=0).astype(np.float32)
    scales: Float32 = largest * np.float32(_HEADROOM / INT8_LIMIT)
    scales[scales == 0] = 1  # a dimension that is always zero may have any scale
    return scales
