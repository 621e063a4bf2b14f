"""Opening the files of a corpus: the same file that was listed, and every failure told by its name."""

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
"""The longest window that a compressed file may be unpacked with, in bytes: zstd's own limit."""

_NEEDS_MEMORY = ("requires too much memory", "Memory usage limit")  # as zstd and xz say it


@contextmanager
def naming_errors(path: str) -> Iterator[None]:
    """Turn what the system and the decompressors raise into CorpusError or ResourceError that names ``path``."""
    try:
        yield
    except KnnstoreError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorpusError(f"{path!r} is not there any more, or is a link to nothing; list the corpus again") from error
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
                f"{path!r} needs a longer window to unpack than {format_size(MOST_WINDOW)}: recompress it with the "
                "defaults of zstd or xz"
            ) from error
        raise CorpusError(f"{path!r} is damaged or cut short: {reason}; replace it or leave it out") from error


@contextmanager
def open_unchanged(path: str, size: int, folder: str = "") -> Iterator[BinaryIO]:
    """The file at ``path`` below ``folder``, opened for reading.

    Raises CorpusError if it isn't ``size`` bytes before or after it was read.
    """
    with naming_errors(path):
        place = os.path.join(folder, path)  # noqa: PTH118 - a path may begin with ./ for good
        file = open(place, "rb", opener=_open_at_once)  # noqa: SIM115  what goes wrong later is named elsewhere
    with file:
        _check(file, path, size)
        yield file
        _check(file, path, size)


def blocks(file: BinaryIO, path: str) -> Iterator[bytes]:
    """The bytes of the file, a MiB at a time."""
    with naming_errors(path):
        while block := file.read(BLOCK_BYTES):
            yield block


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO put in the file's place would otherwise wait for ever


def _check(file: BinaryIO, path: str, size: int) -> None:
    with naming_errors(path):
        info = os.fstat(file.fileno())
    if not stat.S_ISREG(info.st_mode) or info.st_size != size:
        raise CorpusError(
            f"{path!r} has changed since it was listed: it had {size} bytes and has {info.st_size}; "
            "leave the corpus alone while it is read, and start again"
        )
