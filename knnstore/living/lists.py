"""The lists of a copied segment, out of its sources' lists: nothing is assigned or encoded again.

The sources' lists are read in their order, a range at a time; what is kept gets its new row number and is sorted into
a run, of the same form as those of a build, and the runs are merged as there.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from knnstore.build.lists import merge_runs, run_tasks
from knnstore.datastore.arrays import read_rows
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import segment_root
from knnstore.index.fill import list_order, run_layout, write_run
from knnstore.index.merge import OFFSETS, merge_tasks
from knnstore.index.plan import IndexFolder, SegmentReference, open_index, segment_reference
from knnstore.living.copying import Origins, recoded
from knnstore.progress import Reporter
from knnstore.scheduling import Runner


@dataclass(frozen=True, slots=True)
class RegroupTask:
    """Rows ``[begin, end)``, in list order, of the lists of source number ``source``, to be sorted into one run."""

    store: Path
    index: str
    target: SegmentReference
    sources: tuple[SegmentReference, ...]
    source: int
    begin: int
    end: int

    @property
    def name(self) -> str:
        """Name of the run and of its commit."""
        return f"run-{self.sources[self.source].name}-{self.begin:012d}-{self.end:012d}"

    @property
    def rows(self) -> int:
        """Rows that are read."""
        return self.end - self.begin


def regroup_lists(
    folder: IndexFolder,
    store: Path,
    segment: Segment,
    sources: list[Segment],
    *,
    run_chunks: int,
    runner: Runner,
    reporter: Reporter,
) -> None:
    """Make the lists of a copied segment; the sources are segments of the same store, all in the index."""
    reference = segment_reference(segment)
    commits = folder.list_commits(reference)
    if all(commits.find(task.name) for task in merge_tasks(store, folder, reference, ())):
        return
    size = run_layout(folder, reference, run_chunks) * reference.chunk_rows
    given = tuple(segment_reference(source) for source in sources)
    tasks = [
        RegroupTask(store, folder.plan.name, reference, given, number, begin, min(begin + size, one.rows))
        for number, one in enumerate(given)
        for begin in range(0, one.rows, size)
    ]
    run_tasks(folder.run_commits(reference), tasks, regroup, stage="regroup", runner=runner, reporter=reporter)
    merge_runs(folder, store, segment, tuple(task.name for task in tasks), runner=runner, reporter=reporter)


def regroup(task: RegroupTask) -> int:
    """Read a range of a source's lists, renumber, sort and write it as a run; return the rows that were read."""
    folder = open_index(task.store, task.index)
    segment = Segment(segment_root(task.store, task.target.name))
    sources = [Segment(segment_root(task.store, reference.name)) for reference in task.sources]
    source, reference = sources[task.source], task.sources[task.source]
    arrays = {
        name: read_rows(folder.lists(reference.name, name), task.begin, task.end)
        for name in ("keys", "codes", "values", "rows")
    }
    offsets = read_rows(folder.lists(reference.name, OFFSETS), 0, folder.plan.nlist + 1)
    lists = np.searchsorted(offsets, np.arange(task.begin, task.end), side="right") - 1
    rows = Origins(segment, sources).copied(task.source, arrays["rows"].astype(np.int64))
    kept = np.flatnonzero(rows >= 0)
    order = kept[list_order(rows[kept], lists[kept], folder.plan.seed)]
    counts = np.bincount(lists[kept], minlength=folder.plan.nlist)
    arrays["keys"] = recoded(arrays["keys"], source, segment)
    arrays["rows"] = rows.astype(task.target.row_dtype)
    error = float(folder.list_commits(reference).require(OFFSETS).facts["error"])
    write_run(
        folder,
        task.target,
        task.name,
        arrays,
        order=order,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        error=error * len(kept),
        measured=len(kept),
    )
    return task.rows
