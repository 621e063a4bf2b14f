"""Cold measurements: what lies in the page cache is dropped first, file by file, which needs no privileges."""

import os
from collections.abc import Iterable
from pathlib import Path

from knnstore.indexes.ivfpq.search import Searcher


def drop_pages(files: Iterable[Path]) -> None:
    """Drop the files' pages from the page cache: those that are flushed and that nobody has mapped."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def list_files(searcher: Searcher) -> list[Path]:
    """The files that a search reads."""
    arrays = [array for part in searcher.parts for array in (part.keys, part.codes, part.values, part.rows)]
    return [path for array in arrays for path in (array.path / "c").rglob("*") if path.is_file()]


def cool(searcher: Searcher, files: list[Path]) -> None:
    """Let go of a searcher's maps and drop the pages of its ``files``."""
    for part in searcher.parts:
        for array in (part.keys, part.codes, part.values, part.rows):
            array.release()
    drop_pages(files)
