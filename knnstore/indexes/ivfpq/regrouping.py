"""Make the lists of a copied segment from the lists of its sources.

A copy omits rows and renumbers the others, but every key stays in its list::

    lists of a source  →  range in list order  →  drop, renumber and sort rows: a run  →  merge: lists of the copy

Runs have the same format as those of a build and are merged in the same way. No key is assigned again, and none is
encoded again unless the quantisers differ. The keys of a source without lists are assigned and encoded as in a build.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.arrays import read_rows
from knnstore.datastore.layout import segment_root
from knnstore.datastore.origins import Origins, recoded
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import open_segment
from knnstore.indexes.compute.stored import decode
from knnstore.indexes.ivfpq.building import begin_lists, make_runs, merge_runs
from knnstore.indexes.ivfpq.fill import MEASURED, list_order, over_blocks, quantised_rows, run_layout, write_run
from knnstore.indexes.ivfpq.merge import OFFSETS
from knnstore.indexes.ivfpq.plan import IvfPqFolder
from knnstore.indexes.ivfpq.quantiser import Quantiser, load_quantiser
from knnstore.indexes.plan import SegmentReference, segment_reference
from knnstore.scheduling import Job, Stage


@dataclass(frozen=True, slots=True)
class Listed:
    """The folder of a segment to copy from, and the index with its lists, if there is one."""

    segment: Path
    index: IvfPqFolder | None


@dataclass(frozen=True, slots=True)
class RegroupTask:
    """Rows ``[begin, end)`` of source number ``source``, to be sorted into one run of the ``target``'s lists.

    Rows are counted in list order if the source has lists, else in stored order.
    """

    folder: IvfPqFolder
    target: SegmentReference
    sources: tuple[Listed, ...]
    source: int
    begin: int
    end: int

    @property
    def name(self) -> str:
        """Return the name of the run and of its commit."""
        return f"run-{self.source:04d}-{self.begin:012d}-{self.end:012d}"

    @property
    def rows(self) -> int:
        """Return the number of rows that are read."""
        return self.end - self.begin


def regroup_lists(folder: IvfPqFolder, segment: Segment, sources: Sequence[Listed], run_chunks: int, job: Job) -> None:
    """Make the lists of a copied segment; ``sources`` are in the order in which they were copied."""
    reference = segment_reference(segment)
    if not begin_lists(folder, reference, job):
        return
    size = run_layout(folder, reference, run_chunks) * reference.chunk_rows
    tasks = [
        RegroupTask(folder.absolute(), reference, tuple(sources), number, begin, end)
        for number, source in enumerate(sources)
        for begin, end in _ranges(Segment(source.segment), size)
    ]
    stage = Stage("regroup", folder.run_commits(reference), tasks, regroup)
    make_runs(stage, job)
    merge_runs(folder, segment, stage, job)


def _ranges(source: Segment, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of about ``size`` rows, in whole chunks of the source."""
    chunk = source.plan.chunk_rows
    step = max(1, size // chunk) * chunk
    for begin in range(0, source.rows, step):
        yield begin, min(begin + step, source.rows)


def regroup(task: RegroupTask) -> int:
    """Read a range of a source, renumber and sort it, and write it as a run; return the number of rows read."""
    folder = task.folder
    segment = Segment(segment_root(folder.store, task.target.name))
    sources = [open_segment(source.segment) for source in task.sources]
    source = sources[task.source]
    part = _read(task, source)
    rows = Origins(segment, sources).copied(task.source, part.rows)
    kept = np.flatnonzero(rows >= 0)
    order = kept[list_order(rows[kept], part.lists[kept], folder.plan.seed)]
    counts = np.bincount(part.lists[kept], minlength=folder.plan.nlist)
    error, measured = part.error(kept, kept[rows[kept] % MEASURED == 0])
    write_run(
        folder,
        task.target,
        task.name,
        {
            "keys": recoded(part.keys, source, segment),
            "codes": part.codes,
            "values": part.values,
            "rows": rows.astype(task.target.row_dtype),
        },
        order=order,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        error=error,
        measured=measured,
    )
    return task.rows


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Rows of a source: stored ``keys`` (n, d), ``codes`` (n, m), and ``values``, ``rows`` and ``lists`` (n,).

    ``known``: mean quantisation error of the whole source; if it is None, the error is measured with ``quantiser``.
    """

    keys: np.ndarray[Any, Any]
    codes: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    rows: Int64
    lists: Int64
    source: Segment
    quantiser: Quantiser
    known: float | None

    def error(self, kept: Int64, some: Int64) -> tuple[float, int]:
        """Return the sum of the quantisation errors of the ``kept`` rows, estimated from ``some``, and their number.

        Sums of float32 in float64 are usually exact, so that the result doesn't depend on how rows are divided into
        runs.
        """
        if self.known is not None:
            return float(np.float32(self.known)) * len(kept), len(kept)
        if not len(some):
            return 0.0, 0
        keys = decode(self.keys[some], self.source.codec.scales)
        errors = self.quantiser.errors(keys, self.lists[some], self.codes[some])
        # a measured row represents sixteen, to be weighted like sources whose error is known for all rows
        return MEASURED * float(errors.sum(dtype=np.float64)), MEASURED * len(some)


def _read(task: RegroupTask, source: Segment) -> _Part:
    quantiser = load_quantiser(task.folder)
    given = task.sources[task.source].index
    if given is None:
        first, last = task.begin // source.plan.chunk_rows, -(-task.end // source.plan.chunk_rows)
        arrays, lists, _, _ = quantised_rows(source, quantiser, first, last)
        return _Part(**arrays, lists=lists, source=source, quantiser=quantiser, known=None)
    reference = segment_reference(source)
    arrays = {
        name: read_rows(given.lists(reference.name, name), task.begin, task.end)
        for name in ("keys", "codes", "values", "rows")
    }
    offsets = read_rows(given.lists(reference.name, OFFSETS), 0, given.plan.nlist + 1)
    lists = np.searchsorted(offsets, np.arange(task.begin, task.end), side="right") - 1
    known: float | None = None
    if given.plan == task.folder.plan:
        known = float(given.list_commits(reference).require(OFFSETS).number("error"))
    else:
        arrays["codes"] = _encoded(arrays["keys"], lists, source, quantiser)
    arrays["rows"] = arrays["rows"].astype(np.int64)
    return _Part(**arrays, lists=lists, source=source, quantiser=quantiser, known=known)


def _encoded(stored: np.ndarray[Any, Any], lists: Int64, source: Segment, quantiser: Quantiser) -> Any:
    """Return the codes of keys in lists under other quantisers, uint8 (n, pq_bytes)."""
    codes = np.empty((len(stored), len(quantiser.codebooks)), np.uint8)

    def place(block: slice) -> None:
        codes[block] = quantiser.encode(decode(stored[block], source.codec.scales), lists[block])

    size = source.plan.chunk_rows
    over_blocks(quantiser, [(first, min(first + size, len(stored))) for first in range(0, len(stored), size)], place)
    return codes
