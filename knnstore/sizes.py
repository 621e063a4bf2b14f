"""Sizes as people write them: ``"4GB"`` to bytes, and back."""

import re

from knnstore.errors import UsageError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGTP", start=1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGTP", start=1)}
_UNITS |= {prefix: 1000**power for power, prefix in enumerate("KMGTP", start=1)}


def parse_size(text: str) -> int:
    """Bytes in ``"4GB"``, ``"512MiB"``, ``"1e9"``; units are decimal unless they have an i, case doesn't matter.

    Raises UsageError for anything else and for sizes below one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE]\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise UsageError(f"{text!r} is not a size: write a number and a unit, such as 4GB or 512MiB")
    return int(float(match[1]) * unit)


def format_size(count: int | float) -> str:
    """``4000000000`` as ``"4.0 GB"``: decimal units, three figures at most."""
    value, units = float(count), ["B", "KB", "MB", "GB", "TB", "PB"]
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} PB"
