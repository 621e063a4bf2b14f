"""Checksums in the metadata of an object, so that any range of it can be verified.

``crc32c`` covers the whole object, ``body`` all but the last four bytes (in a chunk, everything before its own
checksum), and ``blocks`` has one checksum per block, as little-endian uint32 in base64.
"""

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import google_crc32c

_BLOCK = 2**20
_MOST_BLOCKS = 128  # 684 characters in base64; services allow 2 KB of metadata
_TAIL = 4

if TYPE_CHECKING:
    import numpy as np

Uint32: TypeAlias = "np.ndarray[Any, np.dtype[np.uint32]]"


def block_bytes(size: int) -> int:
    """Return the bytes per block of an object of ``size`` bytes."""
    block = _BLOCK
    while block * _MOST_BLOCKS < size:
        block *= 2
    return block


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """CRC-32C of an object of ``size`` bytes; ``blocks``: uint32 (n,)."""

    size: int
    crc32c: int
    body: int
    blocks: Uint32

    def attributes(self) -> dict[str, str]:
        """Return the sums as metadata of the object."""
        blocks = base64.b64encode(self.blocks.astype("<u4").tobytes()).decode()
        return {"crc32c": f"{self.crc32c:08x}", "body": f"{self.body:08x}", "blocks": blocks}

    @property
    def block_bytes(self) -> int:
        """Return the bytes per block; the last block may be shorter."""
        return block_bytes(self.size)

    def fits(self, data: Any) -> bool:
        """Return whether the sums match ``data``, all bytes of an object."""
        return len(data) == self.size and bool((sums_of(data).blocks == self.blocks).all())


def sums_of(data: Any) -> Sums:
    """Return the sums of bytes in memory."""
    return sums_of_file(io.BytesIO(data).read, memoryview(data).nbytes)


def sums_of_file(read: Callable[[int], bytes], size: int) -> Sums:
    """Return the sums of ``size`` bytes, read in order with ``read(count)``."""
    block, crc, body, left = block_bytes(size), 0, 0, size
    sums = []
    while left:
        piece = read(min(block, left))
        left -= len(piece)
        sums.append(int(google_crc32c.value(piece)))
        # the last four bytes may be in two blocks
        inside = len(piece) - max(0, _TAIL - left)
        body = int(google_crc32c.extend(body, piece[: max(0, inside)])) if inside > 0 else body
        crc = int(google_crc32c.extend(crc, piece))
    import numpy as np  # noqa: PLC0415 - not needed to write local files

    return Sums(size, crc, body if size > _TAIL else 0, np.array(sums, np.uint32))


def sums_from(attributes: Any, size: int) -> Sums | None:
    """Return the sums in an object's metadata; None if they are missing or invalid."""
    import numpy as np  # noqa: PLC0415 - as above

    try:
        blocks = np.frombuffer(base64.b64decode(attributes["blocks"], validate=True), "<u4").astype(np.uint32)
        sums = Sums(size, int(attributes["crc32c"], 16), int(attributes["body"], 16), blocks)
    except (KeyError, ValueError, TypeError, binascii.Error):
        return None
    return sums if len(blocks) == -(-size // block_bytes(size)) else None
