"""Merging, the second half of the external bucket sort: each task writes a whole chunk of the list-ordered arrays.

All runs are sorted in the same order, so that the rows of a chunk are one contiguous range of each run::

    run 0   | list 0  | list 1    | list 2  |        [ ]: the rows of one chunk, in each run
                 [..................]
    run 1   | list 0     | list 1  | list 2   |
                   [..................]

Where a chunk begins or ends within a list, a few rows of each run are enough to find the cut (``cuts.py``).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from knnstore.arrays import Int64, Uint64
from knnstore.datastore.arrays import create_array, read_rows, write_chunk, write_raw_chunks
from knnstore.datastore.block_sums import block_sums, create_sums, sums_path
from knnstore.datastore.layout import segment_root
from knnstore.datastore.segment import Segment
from knnstore.errors import CorruptStoreError
from knnstore.files import at_once, files_of, read_raw
from knnstore.indexes.hashing import shuffle_key
from knnstore.indexes.ivfpq.cuts import cut_list
from knnstore.indexes.ivfpq.fill import list_order
from knnstore.indexes.ivfpq.plan import IvfPqFolder, IvfPqPlan
from knnstore.indexes.plan import SegmentReference
from knnstore.scheduling import Stage
from knnstore.wording import command

OFFSETS = "offsets"

Item = TypeVar("Item")
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class MergeTask:
    """One chunk of a segment's list-ordered arrays, from the named runs."""

    folder: IvfPqFolder
    segment: SegmentReference
    runs: tuple[str, ...]
    chunk: int

    @property
    def name(self) -> str:
        """Return the name of the commit."""
        return f"lists-{self.chunk:08d}"

    @property
    def bounds(self) -> tuple[int, int]:
        """Return the list-ordered rows ``[begin, end)`` of the chunk."""
        begin = self.chunk * self.segment.chunk_rows
        return begin, min(begin + self.segment.chunk_rows, self.segment.rows)

    @property
    def rows(self) -> int:
        """Return the number of rows in the chunk."""
        return self.bounds[1] - self.bounds[0]


def merge_stage(folder: IvfPqFolder, reference: SegmentReference, runs: tuple[str, ...]) -> Stage[MergeTask]:
    """Return the stage that merges the named runs into the chunks of a segment's lists."""
    chunks = range(-(-reference.rows // reference.chunk_rows))
    tasks = [MergeTask(folder.absolute(), reference, runs, chunk) for chunk in chunks]
    return Stage("merge", folder.list_commits(reference), tasks, merge_chunk)


def array_forms(
    plan: IvfPqPlan, segment: Segment, reference: SegmentReference
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shape of a row and the dtype of each list-ordered array."""
    return {
        "keys": ((plan.dimension,), np.dtype(plan.key_dtype)),
        "codes": ((plan.pq_bytes,), np.dtype(np.uint8)),
        "values": ((), segment.plan.value_dtype),
        "rows": ((), reference.row_dtype),
    }


def create_lists(folder: IvfPqFolder, segment: Segment, reference: SegmentReference, runs: tuple[str, ...]) -> None:
    """Create a segment's list-ordered arrays, fill ``offsets`` from the runs' counts, and commit them."""
    commits = folder.list_commits(reference)
    if commits.find(OFFSETS):
        return
    files = []
    for name, (width, dtype) in array_forms(folder.plan, segment, reference).items():
        shape = (reference.rows, *width)
        path = folder.lists(reference.name, name)
        files += create_array(path, shape, reference.chunk_rows, dtype, "none") + create_sums(path)
    path = folder.lists(reference.name, "offsets")
    entries = folder.plan.nlist + 1
    files += create_array(path, (entries,), entries, np.dtype(np.int64), "none")
    offsets = np.zeros(entries, np.int64)
    error, measured = 0.0, 0.0
    for run in runs:
        offsets += _read(folder.runs(reference.name) / run / "offsets", np.dtype("<i8"), 0, entries)
        done = folder.run_commits(reference).require(run)
        error, measured = error + done.number("error"), measured + done.number("measured")
    files.append(write_chunk(path, 0, offsets))
    commits.commit(OFFSETS, list(dict.fromkeys(files)), error=error / measured)


def merge_chunk(task: MergeTask) -> int:
    """Gather one chunk from all runs, write and commit it; return its number of rows."""
    folder = task.folder
    segment = Segment(segment_root(folder.store, task.segment.name))
    pieces, lists = _pieces(folder, task)
    forms = array_forms(folder.plan, segment, task.segment)
    runs = folder.runs(task.segment.name)
    rows = _gather(runs, "rows", forms["rows"], pieces)
    order = list_order(rows, lists, folder.plan.seed)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    blocks = {
        folder.lists(task.segment.name, name): _gather(runs, name, form, pieces, place) for name, form in forms.items()
    }
    sums = {sums_path(path): block_sums(path, block) for path, block in blocks.items()}
    folder.list_commits(task.segment).commit(task.name, write_raw_chunks(task.chunk, blocks | sums))
    return len(rows)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows ``[begin, end)`` of a run."""

    run: str
    begin: int
    end: int


def _pieces(folder: IvfPqFolder, task: MergeTask) -> tuple[list[_Piece], Int64]:
    """Return each run's part of the chunk, and the list of each row of the concatenated parts."""
    offsets = read_rows(folder.lists(task.segment.name, "offsets"), 0, folder.plan.nlist + 1)
    begin, end = task.bounds
    # the lists that hold the chunk's first and last row
    first, last = (int(np.searchsorted(offsets, row, side="right")) - 1 for row in (begin, end - 1))
    runs = folder.runs(task.segment.name)
    # bounds of the lists from the first to the last in each run: int64 (runs, lists + 1)
    read_bounds = lambda run: _read(runs / run / "offsets", np.dtype("<i8"), first, last + 2 - first)  # noqa: E731
    bounds = np.stack(list(_each(runs, read_bounds, task.runs)))
    if (np.diff(bounds).sum(axis=0) != np.diff(offsets[first : last + 2])).any():
        raise CorruptStoreError(
            f"{runs}: the runs' number of rows in lists {first} to {last} differs from that in {folder.root}: "
            f"run {command('index', overwrite=True)}"
        )

    def hashes(run: int, begin: int, end: int) -> Uint64:
        rows = _read(runs / task.runs[run] / "rows", task.segment.row_dtype, begin, end - begin)
        return np.asarray(shuffle_key(rows.astype(np.uint64), folder.plan.seed))

    starts = cut_list(bounds[:, 0], bounds[:, 1], begin - int(offsets[first]), hashes)
    ends = cut_list(bounds[:, -2], bounds[:, -1], end - int(offsets[last]), hashes)
    counts = np.diff(np.clip(bounds, starts[:, None], ends[:, None]), axis=1)
    if int(counts.sum()) != end - begin:
        raise CorruptStoreError(f"{runs}: a run isn't sorted: run {command('index', overwrite=True)}")
    lists = np.repeat(np.broadcast_to(np.arange(first, last + 1), counts.shape), counts.ravel())
    pieces = [_Piece(*piece) for piece in zip(task.runs, starts.tolist(), ends.tolist(), strict=True)]
    return pieces, lists


def _gather(
    runs: Path,
    name: str,
    form: tuple[tuple[int, ...], np.dtype[Any]],
    pieces: list[_Piece],
    place: Int64 | None = None,
) -> np.ndarray[Any, Any]:
    """Return the concatenated pieces of one array, or each row at its ``place``."""
    width, dtype = form
    total = sum(piece.end - piece.begin for piece in pieces)
    block = np.empty((total, *width), dtype)
    items = int(np.prod(width, dtype=np.int64))

    def read(piece: _Piece) -> np.ndarray[Any, Any]:
        count = piece.end - piece.begin
        return _read(runs / piece.run / name, dtype, piece.begin * items, count * items).reshape(count, *width)

    done = 0
    for part in _each(runs, read, pieces):
        block[slice(done, done + len(part)) if place is None else place[done : done + len(part)]] = part
        done += len(part)
    return block


def _each(runs: Path, read: Callable[[Item], Part], items: Iterable[Item]) -> Iterator[Part]:
    """Yield ``read(item)`` of each item; in a bucket, where small reads take as long as large ones, many at a time."""
    return at_once(read, items) if files_of(runs).fetches else map(read, items)


def _read(path: Path, dtype: np.dtype[Any], first: int, count: int) -> np.ndarray[Any, Any]:
    begin, size = first * dtype.itemsize, count * dtype.itemsize
    data = read_raw(path, begin, begin + size)
    if len(data) != size:
        raise CorruptStoreError(f"{path} is shorter than its offsets say: run {command('index', overwrite=True)}")
    return np.frombuffer(data, dtype)
