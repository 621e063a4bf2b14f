"""A hash of row numbers, for the order within a list and for sums that don't depend on the order."""

from typing import Any

_MASK = 2**64 - 1


def shuffle_key(rows: Any, seed: int) -> Any:
    """Return a 64-bit hash of row numbers, a Python int or a uint64 array; it is a bijection (SplitMix64)."""
    mixed = (rows + (seed * 0x9E3779B97F4A7C15 & _MASK)) & _MASK
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK
    return mixed ^ (mixed >> 31)
