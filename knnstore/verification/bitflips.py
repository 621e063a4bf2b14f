"""Correct a single flipped bit in a small file whose checksum or digest is known.

Every bit of the file is flipped in turn. If exactly one of these candidates matches the checksum, it is the original.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import google_crc32c

from knnstore.datastore.arrays import METADATA_FILE
from knnstore.datastore.history import FOLDER as LOG
from knnstore.datastore.history import TAKEDOWN, load_change, takedown_state
from knnstore.datastore.removed import FOLDER as REMOVED
from knnstore.errors import KnnstoreError
from knnstore.files import CHECKSUM_FIELD, unseal_json

# Larger files would take long, and other damage would be more likely to look like a flipped bit: the probability is
# at most 8 × bytes ÷ 2^32, since candidates must also be canonical JSON.
_MOST_BYTES = 2**14
_CHECKSUM_LINE = re.compile(rb'\n "' + CHECKSUM_FIELD.encode() + rb'": ([0-9]+)(,?)')


def corrected_file(root: Path, path: Path) -> bytes | None:
    """Return the original of a damaged file of the store at ``root`` if it provably differs in one bit, else None."""
    if not _is_plain_file(path):
        return None
    if path.suffix == ".json" and path.name != METADATA_FILE:
        return corrected(path.read_bytes())
    if path.suffix == ".parquet" and path.parent == root / REMOVED:
        return _corrected(path.read_bytes(), lambda data: hashlib.sha256(data).hexdigest().startswith(path.stem))
    if path.suffix == ".parquet" and path.parent == root / LOG:
        try:
            digest = load_change(root, takedown_state(path) or 0).facts[TAKEDOWN]
        except (KnnstoreError, ValueError, KeyError):
            return None
        return _corrected(path.read_bytes(), lambda data: hashlib.sha256(data).hexdigest() == digest)
    return None


def _is_plain_file(path: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink()
    except OSError:  # the name may come from a damaged record and be invalid
        return False


def corrected(data: bytes) -> bytes | None:
    """Return the sealed JSON that differs from ``data`` in one bit, or None if there isn't exactly one."""
    return _corrected(data, _is_sealed)


def _corrected(data: bytes, is_right: Callable[[bytes], bool]) -> bytes | None:
    if len(data) > _MOST_BYTES:
        return None
    matches = []
    damaged = bytearray(data)
    for bit in range(8 * len(data)):
        damaged[bit // 8] ^= 1 << bit % 8
        if is_right(bytes(damaged)):
            matches.append(bytes(damaged))
        damaged[bit // 8] ^= 1 << bit % 8
    return matches[0] if len(matches) == 1 else None


def _is_sealed(data: bytes) -> bool:
    line = _CHECKSUM_LINE.search(data)
    if line is None:
        return False
    rest = data[: line.start()] + data[line.end() :]
    if not line[2]:  # the last field: also drop the comma that precedes it
        rest = data[: line.start()].removesuffix(b",") + data[line.end() :]
    if google_crc32c.value(rest) != int(line[1]):  # fast, and rejects nearly all candidates
        return False
    try:
        return CHECKSUM_FIELD in json.loads(data) and unseal_json(data) is not None
    except (ValueError, RecursionError):
        return False
