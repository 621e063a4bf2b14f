"""Cold measurements: files are first dropped from the page cache one by one, which needs no privileges."""

import os
from collections.abc import Iterable
from pathlib import Path

from knnstore.indexes.ivfpq.search import Searcher


def drop_pages(files: Iterable[Path]) -> None:
    """Drop pages of the files from the page cache, if they are flushed and not mapped by any process."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def list_files(searcher: Searcher) -> list[Path]:
    """Return the files that a search reads."""
    arrays = [array for part in searcher.parts for array in (part.keys, part.codes, part.values, part.rows)]
    return [path for array in arrays for path in (array.path / "c").rglob("*") if path.is_file()]


def cool(searcher: Searcher, files: list[Path]) -> None:
    """Unmap the arrays of a searcher and drop the pages of its ``files``."""
    for part in searcher.parts:
        for array in (part.keys, part.codes, part.values, part.rows):
            array.release()
    drop_pages(files)
