"""Merging, second half of the external bucket sort: each task writes one whole chunk of the list-ordered arrays.

The rows of a chunk are one contiguous range of each run: within a list every run is in the same order, so the place
where a chunk cuts through a list is found in each run by bisection, without reading the list.
"""

from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.atomic import read_raw, storage_errors
from knnstore.datastore.arrays import create_array, read_rows, write_chunk
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import segment_root
from knnstore.errors import CorruptStoreError
from knnstore.index.fill import shuffle_key
from knnstore.index.plan import IndexFolder, IndexPlan, SegmentReference, open_index
from knnstore.index.quantiser import Int64
from knnstore.objects.path import ObjectPath, path_of

OFFSETS = "offsets"


@dataclass(frozen=True, slots=True)
class MergeTask:
    """One chunk of a segment's list-ordered arrays, from the named runs."""

    store: str
    index: str
    segment: SegmentReference
    runs: tuple[str, ...]
    chunk: int

    @property
    def name(self) -> str:
        """Name of the commit."""
        return f"lists-{self.chunk:08d}"

    @property
    def bounds(self) -> tuple[int, int]:
        """List-ordered rows ``[begin, end)`` of the chunk."""
        begin = self.chunk * self.segment.chunk_rows
        return begin, min(begin + self.segment.chunk_rows, self.segment.rows)

    @property
    def rows(self) -> int:
        """Rows of the chunk."""
        return self.bounds[1] - self.bounds[0]


def merge_tasks(
    store: Path, folder: IndexFolder, reference: SegmentReference, runs: tuple[str, ...]
) -> list[MergeTask]:
    """The chunks of a segment."""
    chunks = range(-(-reference.rows // reference.chunk_rows))
    return [MergeTask(str(store.absolute()), folder.plan.name, reference, runs, chunk) for chunk in chunks]


def array_forms(
    plan: IndexPlan, segment: Segment, reference: SegmentReference
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Width of a row and dtype of each array that is in list order."""
    return {
        "keys": ((plan.dimension,), np.dtype(plan.key_dtype)),
        "codes": ((plan.pq_bytes,), np.dtype(np.uint8)),
        "values": ((), segment.plan.value_dtype),
        "rows": ((), reference.row_dtype),
    }


def create_lists(folder: IndexFolder, segment: Segment, reference: SegmentReference, runs: tuple[str, ...]) -> None:
    """Make a segment's list-ordered arrays, with ``offsets`` filled in from the runs' counts, and commit that."""
    commits = folder.list_commits(reference)
    if commits.find(OFFSETS):
        return
    files = []
    for name, (width, dtype) in array_forms(folder.plan, segment, reference).items():
        shape = (reference.rows, *width)
        files += create_array(folder.lists(reference.name, name), shape, reference.chunk_rows, dtype, "none")
    path = folder.lists(reference.name, "offsets")
    entries = folder.plan.nlist + 1
    files += create_array(path, (entries,), entries, np.dtype(np.int64), "none")
    offsets = np.zeros(entries, np.int64)
    error, measured = 0.0, 0
    for run in runs:
        offsets += _read(folder.runs(reference.name) / run / "offsets", np.dtype("<i8"), 0, entries)
        facts = folder.run_commits(reference).require(run).facts
        error, measured = error + facts["error"], measured + facts["measured"]
    files.append(write_chunk(path, 0, offsets))
    commits.commit(OFFSETS, list(dict.fromkeys(files)), error=error / measured)


def merge_chunk(task: MergeTask) -> int:
    """Gather one chunk from all runs, write and commit it; return its rows."""
    store = path_of(task.store)
    folder = open_index(store, task.index)
    segment = Segment(segment_root(store, task.segment.name))
    pieces, lists = _pieces(folder, task)
    forms = array_forms(folder.plan, segment, task.segment)
    runs = folder.runs(task.segment.name)
    rows = _gather(runs, "rows", forms["rows"], pieces)
    order = np.lexsort((shuffle_key(rows.astype(np.uint64), folder.plan.seed), lists))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    files = []
    for name, form in forms.items():
        block = _gather(runs, name, form, pieces, place)
        files.append(write_chunk(folder.lists(task.segment.name, name), task.chunk, block))
    folder.list_commits(task.segment).commit(task.name, files)
    return len(rows)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows ``[begin, end)`` of a run."""

    run: str
    begin: int
    end: int


def _pieces(folder: IndexFolder, task: MergeTask) -> tuple[list[_Piece], Int64]:
    """Each run's part of the chunk, and the list of each row of all parts laid end to end."""
    offsets = read_rows(folder.lists(task.segment.name, "offsets"), 0, folder.plan.nlist + 1)
    begin, end = task.bounds
    # the lists that hold the chunk's first and last row
    first, last = (int(np.searchsorted(offsets, row, side="right")) - 1 for row in (begin, end - 1))
    runs = folder.runs(task.segment.name)
    bounds = {run: _read(runs / run / "offsets", np.dtype("<i8"), first, last + 2 - first) for run in task.runs}
    starts = _split(
        folder, task.segment, {run: (int(b[0]), int(b[1])) for run, b in bounds.items()}, begin - int(offsets[first])
    )
    ends = _split(
        folder, task.segment, {run: (int(b[-2]), int(b[-1])) for run, b in bounds.items()}, end - int(offsets[last])
    )
    pieces, lists = [], []
    for run in task.runs:
        pieces.append(_Piece(run, starts[run], ends[run]))
        counts = np.diff(np.clip(bounds[run], starts[run], ends[run]))
        lists.append(np.repeat(np.arange(first, last + 1), counts))
    if sum(map(len, lists)) != end - begin:
        raise CorruptStoreError(f"{runs}: the runs don't add up to chunk {task.chunk}: delete {folder.root}")
    return pieces, np.concatenate(lists)


def _split(
    folder: IndexFolder, segment: SegmentReference, ranges: dict[str, tuple[int, int]], rank: int
) -> dict[str, int]:
    """Where each run's part of one list is cut so that ``rank`` rows of the list lie before the cuts.

    ``ranges`` are the list's rows ``[begin, end)`` in each run, sorted by ``shuffle_key``, which has no equals.
    """
    if rank == 0:
        return {run: begin for run, (begin, _) in ranges.items()}
    if rank == sum(end - begin for begin, end in ranges.values()):
        return {run: end for run, (_, end) in ranges.items()}
    seed = folder.plan.seed
    rows = {
        run: _list_rows(folder.runs(segment.name) / run / "rows", segment.row_dtype, begin, end)
        for run, (begin, end) in ranges.items()
        if end > begin
    }

    def cut(threshold: int) -> dict[str, int]:
        return {
            run: ranges[run][0] + bisect_left(rows[run], threshold, key=lambda row: shuffle_key(int(row), seed))
            for run in rows
        }

    low, high = 0, 2**64 - 1
    while low < high:
        middle = (low + high) // 2
        if sum(cut(middle)[run] - ranges[run][0] for run in rows) < rank:
            low = middle + 1
        else:
            high = middle
    return {run: begin for run, (begin, _) in ranges.items()} | cut(low)


def _list_rows(path: Path, dtype: np.dtype[Any], begin: int, end: int) -> np.ndarray[Any, Any]:
    """Row numbers ``[begin, end)`` of a run, of which next to none will be looked at."""
    if isinstance(path, ObjectPath):
        return _read(path, dtype, begin, end - begin)
    return np.memmap(path, dtype, "r")[begin:end]


def _gather(
    runs: Path,
    name: str,
    form: tuple[tuple[int, ...], np.dtype[Any]],
    pieces: list[_Piece],
    place: Int64 | None = None,
) -> np.ndarray[Any, Any]:
    """The pieces of one array laid end to end, or each row at its place."""
    width, dtype = form
    total = sum(piece.end - piece.begin for piece in pieces)
    block = np.empty((total, *width), dtype)
    done = 0
    for piece in pieces:
        count = piece.end - piece.begin
        items = int(np.prod(width, dtype=np.int64))
        part = _read(runs / piece.run / name, dtype, piece.begin * items, count * items).reshape(count, *width)
        block[slice(done, done + count) if place is None else place[done : done + count]] = part
        done += count
    return block


def _read(path: Path, dtype: np.dtype[Any], first: int, count: int) -> np.ndarray[Any, Any]:
    begin = first * dtype.itemsize
    with storage_errors("read", path):
        if isinstance(path, ObjectPath):
            part = np.frombuffer(read_raw(path, begin, begin + count * dtype.itemsize), dtype)
        else:
            part = np.fromfile(path, dtype, count, offset=begin)
    if len(part) != count:
        raise CorruptStoreError(f"{path} is shorter than its offsets say: run 'knnstore index --overwrite'")
    return part
