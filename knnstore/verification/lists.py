"""Check what checksums can't: that an index's lists hold each row of their segment once, and only valid tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.arrays import Uint64
from knnstore.datastore.arrays import chunk_file, open_array, read_chunk
from knnstore.datastore.layout import LISTS, index_root, segment_root
from knnstore.datastore.manifest import Manifest
from knnstore.datastore.segment import Segment
from knnstore.errors import CorruptStoreError

_MIXER = np.uint64(0x9E3779B97F4A7C15)


def list_problems(root: Path, manifest: Manifest) -> Iterator[tuple[Path, str]]:
    """Yield chunks of the lists of the present index that contradict their segment, each with the problem in words.

    Unreadable chunks are skipped: they have been reported already.
    """
    for name in manifest.indexed:
        lists = index_root(root, str(manifest.index)) / LISTS / name
        try:
            segment = Segment(segment_root(root, name))
            if segment.rows:
                yield from _problems(lists, segment.rows, segment.plan.model.vocabulary)
        except CorruptStoreError:  # reported already
            continue


def _problems(lists: Path, rows: int, vocabulary: int) -> Iterator[tuple[Path, str]]:
    for path, bounds in _chunks(lists / "offsets", "i"):  # a single chunk
        if bounds[0] != 0 or bounds[-1] != rows or (np.diff(bounds) < 0).any():
            yield path, f"doesn't increase from 0 to {rows} rows"
    for path, values in _chunks(lists / "values", "u"):
        if int(values.max()) >= vocabulary:
            yield path, f"has token {int(values.max())} of a vocabulary of {vocabulary}"
    # The rows come in list order. Instead of sorting them, compare the sum of their hashes with that of all rows.
    total = count = 0
    path = lists
    for path, numbers in _chunks(lists / "rows", "u"):
        if int(numbers.max()) >= rows:
            yield path, f"has row {int(numbers.max())} of a segment of {rows}"
            return
        total, count = total + _mixed(numbers.astype(np.uint64)), count + len(numbers)
    if count == rows and (total - sum(_every(rows))) % 2**64:
        yield path, "or a chunk before it has a row twice and lacks another"


def _chunks(path: Path, kind: str) -> Iterator[tuple[Path, np.ndarray[Any, Any]]]:
    """Yield the chunks, without padding, of an array of a dtype kind, up to the first that can't be read."""
    form = open_array(path)
    if form.dtype.kind != kind or len(form.shape) > 1:
        return  # searches refuse such an array
    for chunk in range(form.chunks):
        try:
            data = read_chunk(path, form, chunk)
        except CorruptStoreError:
            return
        yield chunk_file(path, chunk, len(form.shape)), data[: form.shape[0] - chunk * form.chunk_rows]


def _every(rows: int) -> Iterator[int]:
    for begin in range(0, rows, 2**20):
        yield _mixed(np.arange(begin, min(begin + 2**20, rows), dtype=np.uint64))


def _mixed(rows: Uint64) -> int:
    """Return the sum of the rows' hashes modulo 2**64, in any order, so that a row that replaces another changes it."""
    mixed = (rows + np.uint64(1)) * _MIXER
    mixed = (mixed ^ (mixed >> np.uint64(31))) * _MIXER
    return int((mixed ^ (mixed >> np.uint64(29))).sum(dtype=np.uint64))
