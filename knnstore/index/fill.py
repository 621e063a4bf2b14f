"""Filling, first half of the external bucket sort: runs of consecutive chunks, each sorted by list.

A run is a folder of raw files: ``keys``, ``codes``, ``values``, ``rows`` in list order and ``offsets`` (nlist + 1).
Within a list the order is that of a seeded hash of the row, which depends on nothing else: any way to cut the runs
gives the same index, and the head of each list is a fair sample of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.atomic import make_folder, replacing, storage_errors, write_atomically, write_json
from knnstore.datastore.manifest import load_json
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import segment_root
from knnstore.index.plan import IndexFolder, SegmentReference, open_index, remove_folder
from knnstore.index.quantiser import Int64, Quantiser, Uint8, load_quantiser
from knnstore.index.train import decode
from knnstore.records import from_json, to_json

LAYOUT_FILE = "layout.json"
_BLOCK = 16384
MEASURED = 16  # of so many keys one has its quantisation error measured
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class FillTask:
    """Chunks ``[first, last)`` of a segment's keys, to be sorted into one run."""

    store: str
    index: str
    segment: SegmentReference
    first: int
    last: int

    @property
    def name(self) -> str:
        """Name of the run and of its commit."""
        return f"run-{self.segment.name}-{self.first:08d}-{self.last:08d}"

    @property
    def rows(self) -> int:
        """Rows of the run."""
        size = self.segment.chunk_rows
        return min(self.last * size, self.segment.rows) - self.first * size


def fill_tasks(
    store: Path, folder: IndexFolder, segment: Segment, reference: SegmentReference, *, run_chunks: int
) -> list[FillTask]:
    """The runs of a segment."""
    return [
        FillTask(str(store.absolute()), folder.plan.name, reference, first, min(first + run_chunks, segment.chunks))
        for first in range(0, segment.chunks, run_chunks)
    ]


@dataclass(frozen=True, slots=True)
class _Layout:
    run_chunks: int


def run_layout(folder: IndexFolder, reference: SegmentReference, run_chunks: int) -> int:
    """Chunks a run: those of the interrupted run if they are no larger than today's memory allows, else anew."""
    runs = folder.runs(reference.name)
    path = runs / LAYOUT_FILE
    if path.is_file():
        earlier = from_json(_Layout, load_json(path), str(path)).run_chunks
        if 1 <= earlier <= run_chunks:
            return earlier
        remove_folder(runs)
    make_folder(runs)
    write_json(path, to_json(_Layout(run_chunks)))
    folder.run_commits(reference).prepare()
    return run_chunks


def fill_run(task: FillTask) -> int:
    """Assign, encode, sort and write one run; return its rows. Its commit tells the quantisation error of some."""
    folder = open_index(Path(task.store), task.index)
    segment = Segment(segment_root(Path(task.store), task.segment.name))
    quantiser = load_quantiser(folder)
    stored, values, lists, codes = quantised_rows(segment, quantiser, task.first, task.last)
    some = slice(None, None, MEASURED)
    keys = decode(stored[some], segment.codec.scales)
    error = float(quantiser.errors(keys, lists[some], codes[some]).sum(dtype=np.float64))
    first_row = segment.chunk_range(task.first)[0]
    rows = np.arange(first_row, first_row + len(stored), dtype=task.segment.row_dtype)
    order = np.lexsort((shuffle_key(rows.astype(np.uint64), folder.plan.seed), lists))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=folder.plan.nlist))])
    arrays = {"keys": stored, "codes": codes, "values": values, "rows": rows}
    write_run(folder, task.segment, task.name, arrays, order=order, offsets=offsets, error=error, measured=len(keys))
    return len(stored)


def write_run(
    folder: IndexFolder,
    reference: SegmentReference,
    name: str,
    arrays: dict[str, np.ndarray[Any, Any]],
    *,
    order: Int64,
    offsets: Int64,
    **facts: Any,
) -> None:
    """Write and commit a run: ``arrays`` taken in ``order``, and its ``offsets``, int64 (nlist + 1,)."""
    files = _write_files(folder.runs(reference.name) / name, arrays, order, offsets)
    folder.run_commits(reference).commit(name, files, rows=len(order), **facts)


def shuffle_key(rows: Any, seed: int) -> Any:
    """A 64-bit hash of row numbers, a bijection (SplitMix64): Python's int or an array of uint64 alike."""
    mixed = (rows + (seed * 0x9E3779B97F4A7C15 & _MASK)) & _MASK
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK
    return mixed ^ (mixed >> 31)


def quantised_rows(
    segment: Segment, quantiser: Quantiser, first_chunk: int, last_chunk: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Int64, Uint8]:
    """Stored keys, values, lists and PQ codes of the rows of chunks ``[first_chunk, last_chunk)``, in corpus order."""
    begin, end = segment.chunk_range(first_chunk)[0], segment.chunk_range(last_chunk - 1)[1]
    stored = np.empty((end - begin, segment.dimension), segment.codec.stored)
    values = np.empty(end - begin, segment.plan.value_dtype)
    codes = np.empty((end - begin, len(quantiser.codebooks)), np.uint8)
    lists = np.empty(end - begin, np.int64)
    for chunk in range(first_chunk, last_chunk):
        first, last = (row - begin for row in segment.chunk_range(chunk))
        stored[first:last] = segment.keys(first + begin, last + begin)
        values[first:last] = segment.values(first + begin, last + begin)
        for block in blocks_within(first, last):
            keys = decode(stored[block], segment.codec.scales)
            lists[block] = quantiser.assign(keys)
            codes[block] = quantiser.encode(keys, lists[block])
    return stored, values, lists, codes


def blocks_within(first: int, last: int) -> list[slice]:
    """The rows ``[first, last)`` of one chunk, block by block.

    Blocks begin where chunks do, whatever the run, so that every key meets the same arithmetic.
    """
    return [slice(start, min(start + _BLOCK, last)) for start in range(first, last, _BLOCK)]


def _write_files(folder: Path, arrays: dict[str, np.ndarray[Any, Any]], order: Int64, offsets: Int64) -> list[Path]:
    with storage_errors("write", folder):
        folder.mkdir(exist_ok=True)  # without its parents: a copy of a task that ends too late must not bring them back
        for name, array in arrays.items():
            with replacing(folder / name) as file:
                for start in range(0, len(order), _BLOCK):
                    file.write(array[order[start : start + _BLOCK]].data)
        write_atomically(folder / "offsets", offsets.astype("<i8").tobytes())
    return [folder / name for name in (*arrays, "offsets")]
