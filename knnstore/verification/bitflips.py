"""One flipped bit in a small file whose checksum or digest is known can be found by it, and put back."""

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

# Beyond this size it would take long, and the chance that another damage looks like one bit's would grow: it is
# 8 × bytes ÷ 2^32, less what isn't JSON in canonical form.
_MOST_BYTES = 2**14
_CHECKSUM_LINE = re.compile(rb'\n "' + CHECKSUM_FIELD.encode() + rb'": ([0-9]+)(,?)')


def corrected_file(root: Path, path: Path) -> bytes | None:
    """What a damaged file of the store at ``root`` was, if it can be told to differ by one bit from what it is."""
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
    except OSError:  # damage may have made it a name that no file system takes
        return False


def corrected(data: bytes) -> bytes | None:
    """The sealed JSON that differs from ``data`` by one bit, or None if there isn't exactly one."""
    return _corrected(data, _is_sealed)


def _corrected(data: bytes, is_right: Callable[[bytes], bool]) -> bytes | None:
    if len(data) > _MOST_BYTES:
        return None
    found = []
    damaged = bytearray(data)
    for bit in range(8 * len(data)):
        damaged[bit // 8] ^= 1 << bit % 8
        if is_right(bytes(damaged)):
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
