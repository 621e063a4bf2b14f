"""Read compressed files and UTF-16 as streams of UTF-8 bytes, in bounded memory."""

import bz2
import codecs
import gzip
import io
import lzma
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa

from knnstore.corpus.formats import packing_of
from knnstore.corpus.listing import Source
from knnstore.corpus.opening import BLOCK_BYTES, MOST_WINDOW, naming_errors, open_unchanged
from knnstore.errors import CorpusError
from knnstore.sizes import format_size

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_XZ_MEMORY = 2 * MOST_WINDOW
_BYTE_ORDER_MARKS = {  # UTF-32 first, because its mark starts with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Undecodable data becomes a lone surrogate, an error in UTF-8 that readers handle according to their ``errors``.
codecs.register_error("knnstore.surrogate", lambda error: ("\udfff", error.end))  # type: ignore[attr-defined]


@contextmanager
def open_utf8(source: Source) -> Iterator[BinaryIO]:
    """Open a file as unpacked bytes, converted to UTF-8 if it is UTF-16 or UTF-32 with a byte order mark."""
    with open_unchanged(source.path, source.bytes, source.folder) as file, naming_errors(source.path):
        yield as_utf8(unpack(file, source.path))


def unpack(file: BinaryIO, path: str) -> BinaryIO:
    """Return the stream itself, or its unpacked bytes if the name has the suffix of a compression format."""
    packing = packing_of(path)
    if not packing:
        return file
    head = _peek(file)
    if not head:  # some decompressors accept an empty file as an empty text
        raise CorpusError(f"{path!r} is damaged or truncated: it has 0 bytes; replace it or exclude it")
    if packing == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    raw: Any = None
    if packing == ".zst":
        _check_window(head, path)
        raw = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
    elif packing == ".bz2":
        raw = _Unpacked(file, bz2.BZ2Decompressor)
    else:
        raw = _Unpacked(file, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY))
    return io.BufferedReader(raw, BLOCK_BYTES)


def as_utf8(stream: BinaryIO) -> BinaryIO:
    """Return the stream itself, or its text as UTF-8 if it starts with the byte order mark of another encoding."""
    head = _peek(stream)
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return io.BufferedReader(_Transcoded(stream, encoding), BLOCK_BYTES)
    return stream


def _peek(stream: BinaryIO) -> bytes:
    return bytes(cast(io.BufferedReader, stream).peek(16))


def _check_window(head: bytes, path: str) -> None:
    """Raise CorpusError if the first frame needs a longer window than zstd reads by default (RFC 8878, 3.1.1.1.2)."""
    if head[:4] != _ZSTD_MAGIC or len(head) < 6 or head[4] & 0x20:  # a single segment has no window
        return
    base = 1 << 10 + (head[5] >> 3)
    window = base + base // 8 * (head[5] & 7)
    if window > MOST_WINDOW:
        raise CorpusError(
            f"{path!r} needs a window of {format_size(window)} to unpack (zstd --long); the limit is "
            f"{format_size(MOST_WINDOW)}: recompress it, for example with "
            f"zstd -d --long=31 -c {shlex.quote(path)} | zstd -o NEW.zst"
        )


class _Unpacked(io.RawIOBase):
    """A stream unpacked by a decompressor of the standard library, including concatenated streams."""

    def __init__(self, file: BinaryIO, new: Callable[[], Any]) -> None:
        self._file, self._new, self._decompressor = file, new, new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            packed = b""
            if self._decompressor.eof:  # xz may pad streams with NULs
                packed = self._decompressor.unused_data.lstrip(b"\0") or self._file.read(BLOCK_BYTES).lstrip(b"\0")
                if not packed:
                    return 0
                self._decompressor = self._new()
            elif self._decompressor.needs_input and not (packed := self._file.read(BLOCK_BYTES)):
                raise EOFError("the compressed data ends too early")
            data = self._decompressor.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Transcoded(io.RawIOBase):
    """A stream in another encoding, converted to UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream, self._rest = stream, b""
        self._decoder = codecs.getincrementaldecoder(encoding)("knnstore.surrogate")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = b"more"
        while block and not self._rest:
            block = self._stream.read(BLOCK_BYTES)
            self._rest = self._decoder.decode(block, not block).encode("utf-8", "surrogatepass")
        data, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)
