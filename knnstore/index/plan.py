"""What an index is made of, and where its parts lie.

::

    index/<first 16 digits of the plan's fingerprint, or from the second epoch on of that with the epoch>/
        index.json           IndexPlan: everything that the quantisers depend on
        quantizer/           zarr.json, cells/, centroids/, codebooks/          float32; axes/ with a rotation
        commits/             the record of the training
        lists/<segment>/     zarr.json, and in list order, uncompressed:
            offsets/         (nlist + 1,)      int64             list l is rows [offsets[l], offsets[l + 1])
            keys/            (rows, dimension) float16 | int8    as in the segment
            codes/           (rows, pq_bytes)  uint8             PQ code of key − centroid
            values/          (rows,)           uint16 | uint32
            rows/            (rows,)           uint32 | uint64   the segment's row
            check.json       Check: the recall of the self-check in these lists
            commits/         one record a task
        runs/<segment>/      while its lists are being made
        runs/sample/         until the quantisers are trained

A segment that is added later gets lists of its own under the same quantisers; nothing that is there is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.commits import CommitLog, begin_part
from knnstore.datastore.manifest import load_json
from knnstore.datastore.parts import INDEX_PLAN, QUANTIZER, RUNS
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import LISTS, Datastore, index_root
from knnstore.errors import MismatchError, UnfinishedError
from knnstore.planning import parse_rotation
from knnstore.records import LATER, fingerprint, from_json, to_json
from knnstore.wording import command

CHECK_FILE = "check.json"
CHECK = "check"
"""The last task of a segment's lists."""
CHECKED_NEIGHBOURS = 1024
FORMAT_VERSION = 1
_LARGEST = 2**40


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


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """Everything that the quantisers depend on. Neither memory nor the number of workers is among them.

    ``rotation``: of the residuals before they are coded, ``OPQ`` or ``PCA`` and the dimensions that are kept.
    ``trained_on``: the segments that the sample was drawn from, without the documents of the table ``removed``.
    """

    version: int
    nlist: int
    cells: int
    pq_bytes: int
    train_rows: int
    seed: int
    nprobe: int
    dimension: int
    key_dtype: str
    trained_on: tuple[SegmentReference, ...]
    removed: str | None = None
    rotation: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ValueError(f"index format {self.version}; this knnstore reads version {FORMAT_VERSION}")
        sizes = [self.nlist, self.cells, self.pq_bytes, self.train_rows, self.nprobe, self.dimension]
        sizes += [number for segment in self.trained_on for number in (segment.rows, segment.chunk_rows)]
        if not all(0 < size <= _LARGEST for size in sizes) or not self.trained_on:
            raise ValueError("a size is not positive")
        if max(self.cells, self.nprobe) > self.nlist or self.coded_dimension % self.pq_bytes:
            raise ValueError(
                f"impossible nlist {self.nlist}, cells {self.cells}, nprobe {self.nprobe}, pq_bytes {self.pq_bytes}"
            )

    @property
    def name(self) -> str:
        """Its own name."""
        return fingerprint(self)[:16]

    @property
    def coded_dimension(self) -> int:
        """Dimensions of what PQ codes: fewer than the keys' if the rotation drops some."""
        return self.dimension if self.rotation is None else parse_rotation(self.rotation, self.dimension)[1]

    @property
    def trained_rows(self) -> int:
        """Keys of the segments that the quantisers were trained on."""
        return sum(segment.rows for segment in self.trained_on)


@dataclass(frozen=True, slots=True)
class RecentredPlan(IndexPlan):
    """The plan of quantisers that were made of others, by ``recentre``, from the keys of the segment ``trained_on``.

    ``recentred``: name of the index whose lists those keys were in.
    """

    recentred: str = ""


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
class IndexFolder:
    """The folder of an index and its plan."""

    root: Path
    plan: IndexPlan

    @property
    def name(self) -> str:
        """The folder's name: that of its plan, in the first epoch of its store."""
        return self.root.name

    @property
    def commits(self) -> CommitLog:
        """The record of the training."""
        return CommitLog(self.root / "commits", self.root, fingerprint(self.plan))

    def begin(self) -> None:
        """Make the folder, or go on in it."""
        begin_part(self.root, INDEX_PLAN, self.plan)

    def quantizer(self, name: str) -> Path:
        """One of the quantisers' arrays."""
        return self.root / QUANTIZER / name

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


def new_index(store_root: Path, plan: IndexPlan, epoch: int | None) -> IndexFolder:
    """The folder that a writer of an epoch makes an index in."""
    name = plan.name if epoch is None else fingerprint({"index": plan.name, "epoch": epoch})[:16]
    return IndexFolder(index_root(store_root, name), plan)


def open_index(store_root: Path, name: str) -> IndexFolder:
    """The index of that name. Raises UnfinishedError if it isn't there, CorruptStoreError if its plan is damaged."""
    root = index_root(store_root, name)
    if not (root / INDEX_PLAN).is_file():
        raise UnfinishedError(f"{root} is missing: run {command('index')} again")
    value = load_json(root / INDEX_PLAN)
    kind = RecentredPlan if isinstance(value, dict) and "recentred" in value else IndexPlan
    return IndexFolder(root, from_json(kind, value, str(root / INDEX_PLAN)))


def load_check(folder: IndexFolder, references: Sequence[SegmentReference]) -> Check:
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
