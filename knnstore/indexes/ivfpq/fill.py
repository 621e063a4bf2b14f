"""Filling, first half of the external bucket sort: runs of consecutive chunks, each sorted by list.

A run is a folder of raw files: ``keys``, ``codes``, ``values``, ``rows`` in list order and ``offsets`` (nlist + 1).
Within a list the order is that of a seeded hash of the row, which depends on nothing else: any way to cut the runs
gives the same index, and the head of each list is a fair sample of it.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from knnstore.arrays import Int64
from knnstore.datastore.layout import segment_root
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import open_segment
from knnstore.files import load_json, remove_folder, replacing_together, storage_errors, write_json
from knnstore.indexes.compute.stored import decode
from knnstore.indexes.hashing import shuffle_key
from knnstore.indexes.ivfpq.plan import IvfPqFolder
from knnstore.indexes.ivfpq.quantiser import Quantiser, load_quantiser
from knnstore.indexes.plan import SegmentReference
from knnstore.records import from_json, to_json
from knnstore.scheduling import Stage

LAYOUT_FILE = "layout.json"
_BLOCK = 16384
_FEWEST, _BLOCK_NUMBERS = 512, 2**19  # rows and numbers of a block, where threads share them out
_MOST_THREADS = 16  # each holds some blocks
MEASURED = 16  # of so many keys one has its quantisation error measured
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class FillTask:
    """Chunks ``[first, last)`` of a segment's keys, in whatever order these lie, to be sorted into one run."""

    folder: IvfPqFolder
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


def fill_stage(folder: IvfPqFolder, segment: Segment, reference: SegmentReference, run_chunks: int) -> Stage[FillTask]:
    """The stage that writes the runs of a segment."""
    tasks = [
        FillTask(folder.absolute(), reference, first, min(first + run_chunks, segment.chunks))
        for first in range(0, segment.chunks, run_chunks)
    ]
    return Stage("fill", folder.run_commits(reference), tasks, fill_run)


@dataclass(frozen=True, slots=True)
class _Layout:
    run_chunks: int


def run_layout(folder: IvfPqFolder, reference: SegmentReference, run_chunks: int) -> int:
    """Chunks a run: those of the interrupted run if they are no larger than today's memory allows, else anew."""
    runs = folder.runs(reference.name)
    path = runs / LAYOUT_FILE
    if path.is_file():
        earlier = from_json(_Layout, load_json(path), str(path)).run_chunks
        if 1 <= earlier <= run_chunks:
            return earlier
        remove_folder(runs)
    folder.run_commits(reference).prepare()  # first: with a layout there, the runs count as begun
    write_json(path, to_json(_Layout(run_chunks)))
    return run_chunks


def fill_run(task: FillTask) -> int:
    """Assign, encode, sort and write one run; return its rows. Its commit tells the quantisation error of some."""
    folder = task.folder
    segment = open_segment(segment_root(folder.store, task.segment.name))
    quantiser = load_quantiser(folder)
    arrays, lists, error, measured = quantised_rows(segment, quantiser, task.first, task.last)
    rows = arrays["rows"] = arrays["rows"].astype(task.segment.row_dtype)
    order = list_order(rows, lists, folder.plan.seed)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=folder.plan.nlist))])
    del lists  # the memory that is planned for sorting is that of the order from here on
    write_run(folder, task.segment, task.name, arrays, order=order, offsets=offsets, error=error, measured=measured)
    return len(rows)


def write_run(
    folder: IvfPqFolder,
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


def list_order(rows: np.ndarray[Any, Any], lists: Int64, seed: int) -> Int64:
    """The order that sorts rows by their list and, within it, by ``shuffle_key``: int64 (n,)."""
    first = int(lists.min()) if len(lists) else 0
    bits = max(1, int(lists.max(initial=0) - first).bit_length())
    # one word of both sorts in half the time; it has no room for the hash's last bits, which hardly ever decide
    packed = np.asarray(shuffle_key(rows.astype(np.uint64), seed))
    packed >>= np.uint64(bits)
    packed |= (lists - first).view(np.uint64) << np.uint64(64 - bits)
    order = np.argsort(packed)
    packed = packed[order]
    if (packed[1:] == packed[:-1]).any():
        return np.lexsort((np.asarray(shuffle_key(rows.astype(np.uint64), seed)), lists))
    return order


def quantised_rows(
    segment: Segment, quantiser: Quantiser, first_chunk: int, last_chunk: int
) -> tuple[dict[str, np.ndarray[Any, Any]], Int64, float, int]:
    """Keys, codes, values and rows of chunks as they lie, their lists, and the error of so many keys' quantisation."""
    begin, end = segment.chunk_range(first_chunk)[0], segment.chunk_range(last_chunk - 1)[1]
    stored = np.empty((end - begin, segment.dimension), segment.codec.stored)
    values = np.empty(end - begin, segment.plan.value_dtype)
    codes = np.empty((end - begin, len(quantiser.codebooks)), np.uint8)
    rows, lists = np.empty(end - begin, np.int64), np.empty(end - begin, np.int64)

    def place(block: slice) -> tuple[float, int]:
        keys = decode(stored[block], segment.codec.scales)
        lists[block] = quantiser.assign(keys)
        codes[block] = quantiser.encode(keys, lists[block])
        some = np.flatnonzero(rows[block] % MEASURED == 0)  # the same ones in whatever order the keys lie
        errors = quantiser.errors(keys[some], lists[block][some], codes[block][some])
        return float(errors.sum(dtype=np.float64)), len(errors)

    def read() -> Iterator[tuple[int, int]]:
        for chunk in range(first_chunk, last_chunk):
            first, last = (row - begin for row in segment.chunk_range(chunk))
            found = segment.chunk(chunk)
            stored[first:last], values[first:last], rows[first:last] = found.keys, found.values, found.rows
            yield first, last

    results = over_blocks(quantiser, read(), place)
    error, measured = sum(error for error, _ in results), sum(count for _, count in results)
    return {"keys": stored, "codes": codes, "values": values, "rows": rows}, lists, error, measured


def over_blocks(
    quantiser: Quantiser, chunks: Iterable[tuple[int, int]], place: Callable[[slice], Result]
) -> list[Result]:
    """``place(block)`` of every block of rows of the chunks ``[first, last)``, while the next chunk is being read."""
    threads, size = 1, _BLOCK
    if quantiser.filling.in_threads:
        threads = min(_MOST_THREADS, torch.get_num_threads())
        size = max(_FEWEST, min(_BLOCK, _BLOCK_NUMBERS // quantiser.centroids.shape[1]))
    with ThreadPoolExecutor(threads) as pool:
        placed = []
        for first, last in chunks:
            # blocks begin where chunks do, whatever the run, so that every key meets the same arithmetic
            placed += [pool.submit(place, slice(start, min(start + size, last))) for start in range(first, last, size)]
        return [block.result() for block in placed]


def _write_files(folder: Path, arrays: dict[str, np.ndarray[Any, Any]], order: Int64, offsets: Int64) -> list[Path]:
    files = [folder / name for name in (*arrays, "offsets")]
    with storage_errors("write", folder):
        folder.mkdir(exist_ok=True)  # without its parents: a copy of a task that ends too late must not bring them back
        with replacing_together(files) as (*opened, last):
            for array, file in zip(arrays.values(), opened, strict=True):
                for start in range(0, len(order), _BLOCK):
                    file.write(array[order[start : start + _BLOCK]].data)
            last.write(offsets.astype("<i8").data)
    return files
