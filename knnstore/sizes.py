"""Sizes as people write them: ``"4GB"`` to bytes, and back."""

import math
import re

from knnstore.errors import UsageError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGTP", start=1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGTP", start=1)}
_UNITS |= {prefix: 1000**power for power, prefix in enumerate("KMGTP", start=1)}
_LARGEST = 2**60  # bytes


def parse_size(text: str) -> int:
    """Bytes in ``"4GB"``, ``"512MiB"``, ``"1e9"``; units are decimal unless they have an i, case doesn't matter.

    Raises UsageError for anything else, and for sizes below one byte or above an exbibyte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE]\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise UsageError(f"{text!r} is not a size: write a number and a unit, such as 4GB or 512MiB")
    if float(match[1]) * unit > _LARGEST:
        raise UsageError(f"{text!r} is more than an exbibyte: write a size that a machine has, such as 4GB")
    return int(float(match[1]) * unit)


def format_need(count: int) -> str:
    """Return ``1016435200`` as ``"1.02 GB"``: three figures, rounded up, so that giving what is printed is enough."""
    power = max(0, (len(str(count)) - 1) // 3)
    unit = ("B", "KB", "MB", "GB", "TB", "PB")[min(power, 5)]
    value = count / 1000 ** min(power, 5)
    digits = max(0, 3 - len(str(int(value))))
    return f"{math.ceil(round(value * 10**digits, 9)) / 10**digits:.{digits}f} {unit}"


def format_size(count: int | float) -> str:
    """``4000000000`` as ``"4.0 GB"``: decimal units, three figures at most."""
    value, units = float(count), ["B", "KB", "MB", "GB", "TB", "PB"]
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} PB"
