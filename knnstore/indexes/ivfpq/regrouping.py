"""The lists of a copied segment, out of its sources' lists.

The sources' lists are read in their order, a range at a time; what is kept gets its new row number and is sorted into
a run, of the same form as those of a build, and the runs are merged as there. Nothing is assigned again, and nothing
encoded unless the quantisers are others. A source without lists is assigned and encoded as in a build.
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
    """A segment to copy from, by its folder, and the index that has its lists, if one does."""

    segment: Path
    index: IvfPqFolder | None


@dataclass(frozen=True, slots=True)
class RegroupTask:
    """Rows ``[begin, end)`` of source number ``source``, to be sorted into one run of the ``target``'s lists.

    They are counted in list order if the source has lists, else as they lie.
    """

    folder: IvfPqFolder
    target: SegmentReference
    sources: tuple[Listed, ...]
    source: int
    begin: int
    end: int

    @property
    def name(self) -> str:
        """Name of the run and of its commit."""
        return f"run-{self.source:04d}-{self.begin:012d}-{self.end:012d}"

    @property
    def rows(self) -> int:
        """Rows that are read."""
        return self.end - self.begin


def regroup_lists(folder: IvfPqFolder, segment: Segment, sources: Sequence[Listed], run_chunks: int, job: Job) -> None:
    """Make the lists of a copied segment; ``sources`` in the order in which it was copied from them."""
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
    """About ``size`` rows at a time, in whole chunks of the source."""
    chunk = source.plan.chunk_rows
    step = max(1, size // chunk) * chunk
    for begin in range(0, source.rows, step):
        yield begin, min(begin + step, source.rows)


def regroup(task: RegroupTask) -> int:
    """Read a range of a source, renumber, sort and write it as a run; return the rows that were read."""
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
    """Rows of a source: stored ``keys`` (n, d), ``codes`` (n, m), ``values``, ``rows`` and ``lists`` (n,) of each.

    ``known``: the mean quantisation error of the whole source, else None: then it is measured with ``quantiser``.
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
        """The sum of the quantisation errors of the rows that are kept, and how many those are, by ``some`` of them.

        Sums of float32 in float64 are exact as a rule, so that it doesn't matter how the rows were cut into runs.
        """
        if self.known is not None:
            return float(np.float32(self.known)) * len(kept), len(kept)
        if not len(some):
            return 0.0, 0
        keys = decode(self.keys[some], self.source.codec.scales)
        errors = self.quantiser.errors(keys, self.lists[some], self.codes[some])
        # a measured row stands for sixteen, beside sources whose error is known of all
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
    """Codes of keys in lists under other quantisers, uint8 (n, pq_bytes)."""
    codes = np.empty((len(stored), len(quantiser.codebooks)), np.uint8)

    def place(block: slice) -> None:
        codes[block] = quantiser.encode(decode(stored[block], source.codec.scales), lists[block])

    size = source.plan.chunk_rows
    over_blocks(quantiser, [(first, min(first + size, len(stored))) for first in range(0, len(stored), size)], place)
    return codes
