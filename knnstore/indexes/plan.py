"""What every index is made of, and where its parts lie.

::

    index/<first 16 digits of the plan's fingerprint, or from the second epoch on of that with the epoch>/
        index.json           its plan
        commits/             the records of what it shares between segments, such as quantisers
        lists/<segment>/     what it holds of a segment
            check.json       Check: the recall of the self-check in this segment
            commits/         one record a task
        runs/                while it is being made

The rest is up to the type of the index. A segment that is added later gets a folder of its own; nothing that is there
is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from knnstore.datastore.commits import CommitLog, begin_part
from knnstore.datastore.layout import INDEX_PLAN, LISTS, RUNS, SUFFIX, index_root
from knnstore.errors import MismatchError, UnfinishedError
from knnstore.files import load_json
from knnstore.records import fingerprint, from_json, to_json
from knnstore.wording import command

if TYPE_CHECKING:
    from knnstore.datastore.segment import Segment
    from knnstore.datastore.store import Datastore

CHECK_FILE = "check.json"
CHECK = "check"
"""The last task of a segment's lists."""
CHECKED_NEIGHBOURS = 1024


@dataclass(frozen=True, slots=True)
class SegmentReference:
    """A segment that is in the index. ``chunk_rows``: rows a chunk of its list-ordered arrays."""

    name: str
    fingerprint: str
    rows: int
    chunk_rows: int

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """The smallest unsigned dtype, of four or eight bytes, that holds the segment's row numbers."""
        return np.dtype(np.uint32 if self.rows <= 2**32 else np.uint64)


class IndexPlan:
    """Everything that an index depends on besides the keys: a base of frozen dataclasses, which ``index.json`` holds.

    ``kind``: the index type, a field of all plans but those of IVF-PQ, which came before others. ``nlist``: lists that
    a search may leave out, 1 if it always reads the whole index. ``seed``: of whatever is drawn at random.
    """

    __slots__ = ()
    kind: str = "ivfpq"
    nlist: int
    seed: int

    @property
    def name(self) -> str:
        """Its own name."""
        return fingerprint(self)[:16]

    @property
    def trained_rows(self) -> int:
        """Keys of the segments that the index was trained on; 0 if it isn't trained."""
        return 0


Plan = TypeVar("Plan", bound=IndexPlan)


@dataclass(frozen=True, slots=True)
class Check:
    """Result of a self-check: the share of the k true nearest keys that the lists yield at the default nprobe.

    ``source`` is ``heldout`` or, where the store has no held-out queries, ``stored`` (then each query finds itself).
    """

    source: str
    queries: int
    k: int
    nprobe: int
    recall: float
    recall_quantised: float


@dataclass(frozen=True, slots=True)
class IndexFolder(Generic[Plan]):
    """The folder of an index and its plan."""

    root: Path
    plan: Plan

    @property
    def name(self) -> str:
        """The folder's name: that of its plan, in the first epoch of its store."""
        return self.root.name

    @property
    def commits(self) -> CommitLog:
        """The record of the training."""
        return CommitLog(self.root / "commits", self.root, fingerprint(self.plan))

    @property
    def store(self) -> Path:
        """The root of its store."""
        return self.root.parent.parent

    def absolute(self) -> IndexFolder[Plan]:
        """The same folder by its absolute path, for workers elsewhere."""
        return replace(self, root=self.root.absolute())

    def begin(self) -> None:
        """Make the folder, or go on in it."""
        begin_part(self.root, INDEX_PLAN, self.plan)

    def lists(self, segment: str, name: str = "") -> Path:
        """The folder of a segment's lists, or one of the arrays in it."""
        return self.root / LISTS / segment / name

    def list_commits(self, reference: SegmentReference) -> CommitLog:
        """The records of a segment's lists; none of them is about a segment with other keys, or other quantisers."""
        folder = self.lists(reference.name)
        return CommitLog(folder / "commits", folder, self._lists_fingerprint(reference))

    def runs(self, segment: str) -> Path:
        """Temporary folder of a segment's sorted runs."""
        return self.root / RUNS / segment

    def run_commits(self, reference: SegmentReference) -> CommitLog:
        """The records of finished runs; they go when the runs go."""
        folder = self.runs(reference.name)
        return CommitLog(folder / "commits", folder, self._lists_fingerprint(reference))

    def _lists_fingerprint(self, reference: SegmentReference) -> str:
        return fingerprint({"index": self.plan.name, "segment": to_json(reference)})


def new_index(store_root: Path, plan: Plan, epoch: int | None) -> IndexFolder[Plan]:
    """The folder that a writer of an epoch makes an index in."""
    name = plan.name if epoch is None else fingerprint({"index": plan.name, "epoch": epoch})[:16]
    return IndexFolder(index_root(store_root, name), plan)


def open_folder(store_root: Path, name: str, parse: Callable[[Any, str], Plan]) -> IndexFolder[Plan]:
    """The index of that name, whose plan ``parse(value, where)`` makes of its JSON.

    Raises UnfinishedError if it isn't there, CorruptStoreError if its plan is damaged.
    """
    path = index_root(store_root, name) / INDEX_PLAN
    if not path.is_file():
        raise UnfinishedError(f"{path.parent} is missing: run {command('index')} again")
    return IndexFolder(path.parent, parse(load_json(path), str(path)))


def finished_index(store: Datastore) -> str:
    """The name of the store's index. Raises UnfinishedError if none is finished, or keys aren't in it."""
    name = store.manifest.index
    if name is None:
        raise UnfinishedError(f"{store.root} has no finished index: run {_index_command(store)}")
    new = sum(segment.rows for segment in store.segments if segment.root.name not in store.manifest.indexed)
    if new:
        raise UnfinishedError(
            f"{new:,} keys of {store.root} are not in its index yet: run {_index_command(store)}, which adds them"
        )
    return name


def _index_command(store: Datastore) -> str:
    return command("index", store=str(store.root).removesuffix(SUFFIX))


def load_check(folder: IndexFolder[Any], references: Sequence[SegmentReference]) -> Check:
    """The self-check over several segments: that of the largest, with the mean of all recalls, weighted by keys.

    Each looked for its segment's share of the ``CHECKED_NEIGHBOURS``, so that together they stand for all of them.
    """
    checks = []
    for reference in references:
        path = folder.lists(reference.name, CHECK_FILE)
        checks.append(from_json(Check, load_json(path), str(path)))
    shares = np.array([reference.rows for reference in references]) / sum(reference.rows for reference in references)
    return replace(
        checks[int(np.argmax(shares))],
        k=min(CHECKED_NEIGHBOURS, sum(reference.rows for reference in references)),
        recall=round(float(shares @ [check.recall for check in checks]), 6),
        recall_quantised=round(float(shares @ [check.recall_quantised for check in checks]), 6),
    )


def segment_references(store: Datastore) -> tuple[SegmentReference, ...]:
    """The store's segments that hold keys, which have to be of one dtype."""
    if not store.live_rows:
        raise UnfinishedError(f"{store.root} holds no keys: {_how_to_fill(store)}")
    dtypes = {segment.plan.key_dtype for segment in store.segments}
    if len(dtypes) > 1:
        raise MismatchError(f"the segments' keys are {' and '.join(sorted(dtypes))}: an index needs one dtype for all")
    return tuple(segment_reference(segment) for segment in store.segments)


def _how_to_fill(store: Datastore) -> str:
    if store.rows:
        return f"every document is removed; ingest others, or take them back with {command('restore')}"
    return "ingest some text first"


def segment_reference(segment: Segment) -> SegmentReference:
    """What an index has to know of a segment."""
    # zarr stores the last chunk whole, so a segment of few keys gets chunks of just as many rows
    chunk_rows = min(segment.plan.chunk_rows, segment.rows)
    return SegmentReference(segment.root.name, segment.fingerprint, segment.rows, chunk_rows)
