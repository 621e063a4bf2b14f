"""Filling, the first half of the external bucket sort: runs of consecutive chunks, each sorted by list.

A run is a folder of raw files: ``keys``, ``codes``, ``values``, ``rows`` in list order and ``offsets`` (nlist + 1).
Within a list, rows are ordered by a seeded hash of the row number alone. The index is therefore the same however the
chunks are divided into runs, and the head of each list is a random sample of it.
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
_FEWEST, _BLOCK_NUMBERS = 512, 2**19  # minimum rows, and numbers, of a block if threads divide the blocks
_MOST_THREADS = 16  # each needs memory for a few blocks
MEASURED = 16  # the quantisation error is measured for one in this many keys
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class FillTask:
    """Chunks ``[first, last)`` of a segment's keys, in stored order, to be sorted into one run."""

    folder: IvfPqFolder
    segment: SegmentReference
    first: int
    last: int

    @property
    def name(self) -> str:
        """Return the name of the run and of its commit."""
        return f"run-{self.segment.name}-{self.first:08d}-{self.last:08d}"

    @property
    def rows(self) -> int:
        """Return the number of rows in the run."""
        size = self.segment.chunk_rows
        return min(self.last * size, self.segment.rows) - self.first * size


def fill_stage(folder: IvfPqFolder, segment: Segment, reference: SegmentReference, run_chunks: int) -> Stage[FillTask]:
    """Return the stage that writes the runs of a segment."""
    tasks = [
        FillTask(folder.absolute(), reference, first, min(first + run_chunks, segment.chunks))
        for first in range(0, segment.chunks, run_chunks)
    ]
    return Stage("fill", folder.run_commits(reference), tasks, fill_run)


@dataclass(frozen=True, slots=True)
class _Layout:
    run_chunks: int


def run_layout(folder: IvfPqFolder, reference: SegmentReference, run_chunks: int) -> int:
    """Return the chunks per run: as in an interrupted build if memory allows, else ``run_chunks``, without its runs."""
    runs = folder.runs(reference.name)
    path = runs / LAYOUT_FILE
    if path.is_file():
        earlier = from_json(_Layout, load_json(path), str(path)).run_chunks
        if 1 <= earlier <= run_chunks:
            return earlier
        remove_folder(runs)
    folder.run_commits(reference).prepare()  # first, since runs with a layout count as started
    write_json(path, to_json(_Layout(run_chunks)))
    return run_chunks


def fill_run(task: FillTask) -> int:
    """Assign, encode, sort and write one run; return its number of rows. The commit records quantisation errors."""
    folder = task.folder
    segment = open_segment(segment_root(folder.store, task.segment.name))
    quantiser = load_quantiser(folder)
    arrays, lists, error, measured = quantised_rows(segment, quantiser, task.first, task.last)
    rows = arrays["rows"] = arrays["rows"].astype(task.segment.row_dtype)
    order = list_order(rows, lists, folder.plan.seed)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=folder.plan.nlist))])
    del lists  # from here on, the order takes the memory planned for sorting
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
    """Write and commit a run: ``arrays`` in the given ``order``, and ``offsets``, int64 (nlist + 1,)."""
    files = _write_files(folder.runs(reference.name) / name, arrays, order, offsets)
    folder.run_commits(reference).commit(name, files, rows=len(order), **facts)


def list_order(rows: np.ndarray[Any, Any], lists: Int64, seed: int) -> Int64:
    """Return the order that sorts rows by list and, within a list, by ``shuffle_key``: int64 (n,)."""
    first = int(lists.min()) if len(lists) else 0
    bits = max(1, int(lists.max(initial=0) - first).bit_length())
    # Sorting one uint64 per row takes half the time of sorting by two keys:
    #     | list − first (``bits`` bits) | high bits of the hash |
    # The low bits of the hash don't fit. In the rare case that two words are equal, both full keys are sorted.
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
    """Return keys, codes, values and rows of chunks in stored order, lists, and sum and count of measured errors."""
    begin, end = segment.chunk_range(first_chunk)[0], segment.chunk_range(last_chunk - 1)[1]
    stored = np.empty((end - begin, segment.dimension), segment.codec.stored)
    values = np.empty(end - begin, segment.plan.value_dtype)
    codes = np.empty((end - begin, len(quantiser.codebooks)), np.uint8)
    rows, lists = np.empty(end - begin, np.int64), np.empty(end - begin, np.int64)

    def place(block: slice) -> tuple[float, int]:
        keys = decode(stored[block], segment.codec.scales)
        lists[block] = quantiser.assign(keys)
        codes[block] = quantiser.encode(keys, lists[block])
        some = np.flatnonzero(rows[block] % MEASURED == 0)  # the same keys in any stored order
        errors = quantiser.errors(keys[some], lists[block][some], codes[block][some])
        return float(errors.sum(dtype=np.float64)), len(errors)

    def read() -> Iterator[tuple[int, int]]:
        for number in range(first_chunk, last_chunk):
            first, last = (row - begin for row in segment.chunk_range(number))
            chunk = segment.chunk(number)
            stored[first:last], values[first:last], rows[first:last] = chunk.keys, chunk.values, chunk.rows
            yield first, last

    results = over_blocks(quantiser, read(), place)
    error, measured = sum(error for error, _ in results), sum(count for _, count in results)
    return {"keys": stored, "codes": codes, "values": values, "rows": rows}, lists, error, measured


def over_blocks(
    quantiser: Quantiser, chunks: Iterable[tuple[int, int]], place: Callable[[slice], Result]
) -> list[Result]:
    """Return ``place(block)`` of all blocks of the chunks ``[first, last)``; it runs while the next chunk is read."""
    threads, size = 1, _BLOCK
    if quantiser.filling.in_threads:
        threads = min(_MOST_THREADS, torch.get_num_threads())
        size = max(_FEWEST, min(_BLOCK, _BLOCK_NUMBERS // quantiser.centroids.shape[1]))
    with ThreadPoolExecutor(threads) as pool:
        placed = []
        for first, last in chunks:
            # blocks start with a chunk, whatever the run, so that the arithmetic for a key is always the same
            placed += [pool.submit(place, slice(start, min(start + size, last))) for start in range(first, last, size)]
        return [block.result() for block in placed]


def _write_files(folder: Path, arrays: dict[str, np.ndarray[Any, Any]], order: Int64, offsets: Int64) -> list[Path]:
    files = [folder / name for name in (*arrays, "offsets")]
    with storage_errors("write", folder):
        folder.mkdir(exist_ok=True)  # no parents: a duplicate task that ends too late must not recreate them
        with replacing_together(files) as (*opened, last):
            for array, file in zip(arrays.values(), opened, strict=True):
                for start in range(0, len(order), _BLOCK):
                    file.write(array[order[start : start + _BLOCK]].data)
            last.write(offsets.astype("<i8").data)
    return files
