"""Checksums that travel with an object in its metadata, so that any range of it can be verified.

``crc32c`` is that of the whole object, ``body`` that of all but its last four bytes (of a chunk: what stands before its
own checksum), ``blocks`` those of its blocks, little-endian uint32 in base64.
"""

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import google_crc32c

_BLOCK = 2**20
_MOST_BLOCKS = 128  # 684 characters in base64: services take 2 KB of metadata
_TAIL = 4

if TYPE_CHECKING:
    import numpy as np

Uint32: TypeAlias = "np.ndarray[Any, np.dtype[np.uint32]]"


def block_bytes(size: int) -> int:
    """Bytes of a block of an object of so many bytes."""
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
        """As metadata of the object."""
        blocks = base64.b64encode(self.blocks.astype("<u4").tobytes()).decode()
        return {"crc32c": f"{self.crc32c:08x}", "body": f"{self.body:08x}", "blocks": blocks}

    @property
    def block_bytes(self) -> int:
        """Bytes of a block; the last one may be shorter."""
        return block_bytes(self.size)

    def fits(self, data: Any) -> bool:
        """Whether ``data``, all of an object's bytes, is what the sums were made of."""
        return len(data) == self.size and bool((sums_of(data).blocks == self.blocks).all())


def sums_of(data: Any) -> Sums:
    """The sums of bytes that are in memory."""
    return sums_of_file(io.BytesIO(data).read, memoryview(data).nbytes)


def sums_of_file(read: Callable[[int], bytes], size: int) -> Sums:
    """The sums of ``size`` bytes that ``read(count)`` gives from the first on."""
    block, crc, body, left = block_bytes(size), 0, 0, size
    sums = []
    while left:
        piece = read(min(block, left))
        left -= len(piece)
        sums.append(int(google_crc32c.value(piece)))
        # the last four bytes may lie in two blocks
        inside = len(piece) - max(0, _TAIL - left)
        body = int(google_crc32c.extend(body, piece[: max(0, inside)])) if inside > 0 else body
        crc = int(google_crc32c.extend(crc, piece))
    import numpy as np  # noqa: PLC0415 - who only writes local files needs none of it

    return Sums(size, crc, body if size > _TAIL else 0, np.array(sums, np.uint32))


def sums_from(attributes: Any, size: int) -> Sums | None:
    """The sums that an object's metadata tells; None where it has none, or none that can be right."""
    import numpy as np  # noqa: PLC0415 - as above

    try:
        blocks = np.frombuffer(base64.b64decode(attributes["blocks"], validate=True), "<u4").astype(np.uint32)
        sums = Sums(size, int(attributes["crc32c"], 16), int(attributes["body"], 16), blocks)
    except (KeyError, ValueError, TypeError, binascii.Error):
        return None
    return sums if len(blocks) == -(-size // block_bytes(size)) else None
