"""One flipped bit in JSON that carries its checksum can be found by the checksum, and put back."""

import json
import re

import google_crc32c

from knnstore.atomic import CHECKSUM_FIELD, unseal_json

# Beyond this size it would take long, and the chance that another damage looks like one bit's would grow: it is
# 8 × bytes ÷ 2^32, less what isn't JSON in canonical form.
_MOST_BYTES = 2**14
_CHECKSUM_LINE = re.compile(rb'\n "' + CHECKSUM_FIELD.encode() + rb'": ([0-9]+)(,?)')


def mended(data: bytes) -> bytes | None:
    """The sealed JSON that differs from ``data`` by one bit, or None if there isn't exactly one."""
    if len(data) > _MOST_BYTES:
        return None
    found = []
    damaged = bytearray(data)
    for bit in range(8 * len(data)):
        damaged[bit // 8] ^= 1 << bit % 8
        if _is_sealed(bytes(damaged)):
            found.append(bytes(damaged))
        damaged[bit // 8] ^= 1 << bit % 8
    return found[0] if len(found) == 1 else None


def _is_sealed(data: bytes) -> bool:
    line = _CHECKSUM_LINE.search(data)
    if line is None:
        return False
    rest = data[: line.start()] + data[line.end() :]
    if not line[2]:  # the last field: what is left ends in the comma of the field before
        rest = data[: line.start()].removesuffix(b",") + data[line.end() :]
    if google_crc32c.value(rest) != int(line[1]):  # quick: nearly all candidates end here
        return False
    try:
        return CHECKSUM_FIELD in json.loads(data) and unseal_json(data) is not None
    except (ValueError, RecursionError):
        return False
