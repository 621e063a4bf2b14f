"""Convert sizes written like ``"4GB"`` to bytes and back."""

import re

from knnstore.errors import ResourceError, UsageError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGTP", start=1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGTP", start=1)}
_UNITS |= {prefix: 1000**power for power, prefix in enumerate("KMGTP", start=1)}
_LARGEST = 2**60  # bytes


def parse_size(text: str) -> int:
    """Return the bytes in ``"4GB"``, ``"512MiB"`` or ``"1e9"``; units without an i are decimal, case is ignored.

    Raises UsageError for other text and for sizes below one byte or above one exbibyte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE]\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise UsageError(f"{text!r} is not a size: give a number and a unit, such as 4GB or 512MiB")
    if float(match[1]) * unit > _LARGEST:
        raise UsageError(f"{text!r} is more than one exbibyte: give a size such as 4GB")
    return int(float(match[1]) * unit)


def format_need(count: int) -> str:
    """Return ``1016435200`` as ``"1.02 GB"``: three digits, rounded up, so that the printed size suffices."""
    power = min(max(0, (len(str(count)) - 1) // 3), 5)
    unit, scale = ("B", "KB", "MB", "GB", "TB", "PB")[power], 1000**power
    digits = max(0, 3 - len(str(count // scale)))
    rounded = -(-count * 10**digits // scale)  # of whole numbers: a float may round down
    return f"{rounded / 10**digits:.{digits}f} {unit}"


def format_size(count: int | float) -> str:
    """Return ``4000000000`` as ``"4.0 GB"``: decimal units and at most three digits."""
    value, units = float(count), ["B", "KB", "MB", "GB", "TB", "PB"]
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} PB"


def require_memory(memory: int, needed: int, remedy: str = "") -> None:
    """Raise ResourceError, with both numbers, unless ``memory`` bytes are enough. ``remedy``: by default, give more."""
    if memory < needed:
        remedy = remedy or f"give {format_need(needed)} or more"
        raise ResourceError.about("memory", format_size(memory), "is too little", limit=needed, remedy=remedy)
