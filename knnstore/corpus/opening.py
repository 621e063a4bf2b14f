"""Open the files of a corpus as they were listed, with the file's name in every error."""

import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa

from knnstore.errors import CorpusError, KnnstoreError, ResourceError
from knnstore.sizes import format_size

BLOCK_BYTES = 2**20
MOST_WINDOW = 2**27
"""Longest window for unpacking a compressed file, in bytes: zstd's own limit."""

_NEEDS_MEMORY = ("requires too much memory", "Memory usage limit")  # in messages of zstd and xz


@contextmanager
def naming_errors(path: str) -> Iterator[None]:
    """Turn errors of the system and the decompressors into CorpusError or ResourceError with ``path``."""
    try:
        yield
    except KnnstoreError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorpusError(
            f"{path!r} no longer exists or is a broken link; run the command again to list the corpus again"
        ) from error
    except MemoryError as error:
        raise ResourceError(f"not enough memory to read {path!r}: {error}") from error
    except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError) as error:
        number = getattr(error, "errno", None)
        if number is not None:
            raise ResourceError(f"{path!r} can't be read: {os.strerror(number)}") from error
        # Decompressors and Parquet report damage as errors without a number.
        reason = str(error).strip().partition(". ")[0].rstrip(".")
        if any(words in str(error) for words in _NEEDS_MEMORY):
            raise CorpusError(
                f"{path!r} needs a window of more than {format_size(MOST_WINDOW)} to unpack: recompress it with the "
                "default settings of zstd or xz"
            ) from error
        raise CorpusError(f"{path!r} is damaged or truncated: {reason}; replace it or exclude it") from error


@contextmanager
def open_unchanged(path: str, size: int, folder: str = "") -> Iterator[BinaryIO]:
    """Open the file at ``path`` below ``folder`` for reading.

    Raises CorpusError if its size isn't ``size`` bytes before and after it was read.
    """
    with naming_errors(path):
        place = os.path.join(folder, path)  # noqa: PTH118 - pathlib would drop a leading ./
        file = open(place, "rb", opener=_open_at_once)  # noqa: SIM115  later errors are handled elsewhere
    with file:
        _check(file, path, size)
        yield file
        _check(file, path, size)


def blocks(file: BinaryIO, path: str) -> Iterator[bytes]:
    """Yield the bytes of the file in blocks of one MiB."""
    with naming_errors(path):
        while block := file.read(BLOCK_BYTES):
            yield block


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a FIFO in the file's place would otherwise block forever


def _check(file: BinaryIO, path: str, size: int) -> None:
    with naming_errors(path):
        info = os.fstat(file.fileno())
    if not stat.S_ISREG(info.st_mode) or info.st_size != size:
        raise CorpusError(
            f"{path!r} has changed since it was listed, from {size} to {info.st_size} bytes; don't change "
            "the corpus while it is read, and run the command again"
        )
