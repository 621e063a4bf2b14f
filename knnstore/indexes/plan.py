"""Layout on disk that all indexes share.

::

    index/<first 16 digits of the plan's fingerprint, or from the second epoch on of that with the epoch>/
        index.json           the plan
        commits/             records of what the segments share, such as quantisers
        lists/<segment>/     the part of the index for one segment
            check.json       Check: the recall of the self-check in this segment
            commits/         one record per task
        runs/                temporary, during the build

Everything else depends on the type of the index. A segment that is added later gets its own folder; existing files
don't change.
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
"""Name of the last task of a segment's lists."""
CHECKED_NEIGHBOURS = 1024


@dataclass(frozen=True, slots=True)
class SegmentReference:
    """A segment in the index. ``chunk_rows``: rows per chunk of its list-ordered arrays."""

    name: str
    fingerprint: str
    rows: int
    chunk_rows: int

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """Return the smallest unsigned dtype, of four or eight bytes, for the segment's row numbers."""
        return np.dtype(np.uint32 if self.rows <= 2**32 else np.uint64)


class IndexPlan:
    """Everything that an index depends on besides the keys: base class of frozen dataclasses stored in ``index.json``.

    ``kind``: type of the index, a field of all plans except those of IVF-PQ, which is older than other types.
    ``nlist``: number of lists that a search can skip, 1 if it always reads the whole index. ``seed``: random seed.
    """

    __slots__ = ()
    kind: str = "ivfpq"
    nlist: int
    seed: int

    @property
    def name(self) -> str:
        """Return the name that identifies the plan."""
        return fingerprint(self)[:16]

    @property
    def trained_rows(self) -> int:
        """Return the number of keys of the segments that the index was trained on; 0 if it isn't trained."""
        return 0


Plan = TypeVar("Plan", bound=IndexPlan)


@dataclass(frozen=True, slots=True)
class Check:
    """Result of a self-check: the share of the k true nearest keys that the lists yield at the default nprobe.

    ``source`` is ``heldout`` or, if the store has no held-out queries, ``stored``: then each query is a stored key and
    finds itself.
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
        """Return the folder's name: in the first epoch of the store, the name of the plan."""
        return self.root.name

    @property
    def commits(self) -> CommitLog:
        """Return the records of the training."""
        return CommitLog(self.root / "commits", self.root, fingerprint(self.plan))

    @property
    def store(self) -> Path:
        """Return the root of the store."""
        return self.root.parent.parent

    def absolute(self) -> IndexFolder[Plan]:
        """Return the same folder with its absolute path, for workers in other directories."""
        return replace(self, root=self.root.absolute())

    def begin(self) -> None:
        """Create the folder, or resume in it."""
        begin_part(self.root, INDEX_PLAN, self.plan)

    def lists(self, segment: str, name: str = "") -> Path:
        """Return the folder of a segment's lists, or of one of the arrays in it."""
        return self.root / LISTS / segment / name

    def list_commits(self, reference: SegmentReference) -> CommitLog:
        """Return the records of a segment's lists, which are valid only for the same keys and quantisers."""
        folder = self.lists(reference.name)
        return CommitLog(folder / "commits", folder, self._lists_fingerprint(reference))

    def runs(self, segment: str) -> Path:
        """Return the temporary folder of a segment's sorted runs."""
        return self.root / RUNS / segment

    def run_commits(self, reference: SegmentReference) -> CommitLog:
        """Return the records of finished runs, which are removed with the runs."""
        folder = self.runs(reference.name)
        return CommitLog(folder / "commits", folder, self._lists_fingerprint(reference))

    def _lists_fingerprint(self, reference: SegmentReference) -> str:
        return fingerprint({"index": self.plan.name, "segment": to_json(reference)})


def new_index(store_root: Path, plan: Plan, epoch: int | None) -> IndexFolder[Plan]:
    """Return the folder in which a writer of an epoch creates an index."""
    name = plan.name if epoch is None else fingerprint({"index": plan.name, "epoch": epoch})[:16]
    return IndexFolder(index_root(store_root, name), plan)


def open_folder(store_root: Path, name: str, parse: Callable[[Any, str], Plan]) -> IndexFolder[Plan]:
    """Return the index with that name; ``parse(value, where)`` converts the JSON of its plan.

    Raises UnfinishedError if the index is missing, CorruptStoreError if its plan is damaged.
    """
    path = index_root(store_root, name) / INDEX_PLAN
    if not path.is_file():
        raise UnfinishedError(f"{path.parent} is missing: run {command('index')} again")
    return IndexFolder(path.parent, parse(load_json(path), str(path)))


def finished_index(store: Datastore) -> str:
    """Return the name of the store's index. Raises UnfinishedError if none is finished or keys are missing from it."""
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
    """Return the self-check over several segments: that of the largest, with the mean recall weighted by keys.

    Each segment was searched for its share of the ``CHECKED_NEIGHBOURS``, so that all checks together represent a
    search for ``CHECKED_NEIGHBOURS`` in the store.
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
    """Return references to the store's segments.

    Raises UnfinishedError if they hold no keys, MismatchError if their keys differ in dtype.
    """
    if not store.live_rows:
        raise UnfinishedError(f"{store.root} holds no keys: {_how_to_fill(store)}")
    dtypes = {segment.plan.key_dtype for segment in store.segments}
    if len(dtypes) > 1:
        raise MismatchError(f"the segments' keys are {' and '.join(sorted(dtypes))}: an index needs one dtype for all")
    return tuple(segment_reference(segment) for segment in store.segments)


def _how_to_fill(store: Datastore) -> str:
    if store.rows:
        return f"all documents are removed; ingest others, or restore them with {command('restore')}"
    return "ingest some text first"


def segment_reference(segment: Segment) -> SegmentReference:
    """Return what an index records about a segment."""
    # zarr stores the last chunk in full, so a small segment gets a single chunk of its own length
    chunk_rows = min(segment.plan.chunk_rows, segment.rows)
    return SegmentReference(segment.root.name, segment.fingerprint, segment.rows, chunk_rows)
