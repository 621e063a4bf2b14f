"""What an index is made of, and where its parts lie.

::

    index/<first 16 digits of the plan's fingerprint>/
        index.json           IndexPlan: everything that the bytes below depend on
        check.json           Check: the recall of the self-check
        quantizer/           zarr.json, cells/, centroids/, codebooks/          float32
        lists/<segment>/     zarr.json, and in list order, uncompressed:
            offsets/         (nlist + 1,)      int64             list l is rows [offsets[l], offsets[l + 1])
            keys/            (rows, dimension) float16 | int8    as in the segment
            codes/           (rows, pq_bytes)  uint8             PQ code of key − centroid
            values/          (rows,)           uint16 | uint32
            rows/            (rows,)           uint32 | uint64   the segment's row
        commits/             one record a task
        runs/                while it is being built
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.atomic import storage_errors, sync_folder
from knnstore.datastore.commits import CommitLog
from knnstore.datastore.manifest import load_json
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore, index_root
from knnstore.errors import MismatchError, UnfinishedError
from knnstore.records import fingerprint, from_json

PLAN_FILE = "index.json"
CHECK_FILE = "check.json"
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
    """Everything that an index's bytes depend on. Neither memory nor the number of workers is among them."""

    version: int
    nlist: int
    cells: int
    pq_bytes: int
    train_rows: int
    seed: int
    nprobe: int
    dimension: int
    key_dtype: str
    segments: tuple[SegmentReference, ...]

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ValueError(f"index format {self.version}; this knnstore reads version {FORMAT_VERSION}")
        sizes = [self.nlist, self.cells, self.pq_bytes, self.train_rows, self.nprobe, self.dimension]
        sizes += [number for segment in self.segments for number in (segment.rows, segment.chunk_rows)]
        if not all(0 < size <= _LARGEST for size in sizes) or not self.segments:
            raise ValueError("a size is not positive")
        if max(self.cells, self.nprobe) > self.nlist or self.dimension % self.pq_bytes:
            raise ValueError(
                f"impossible nlist {self.nlist}, cells {self.cells}, nprobe {self.nprobe}, pq_bytes {self.pq_bytes}"
            )

    @property
    def name(self) -> str:
        """The name of the index's folder."""
        return fingerprint(self)[:16]

    @property
    def rows(self) -> int:
        """Keys of all segments."""
        return sum(segment.rows for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Check:
    """Result of the self-check: the share of the k true nearest keys that the index finds at its default nprobe.

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
    def commits(self) -> CommitLog:
        """The records of what is done and stays."""
        return CommitLog(self.root / "commits", self.root, fingerprint(self.plan))

    @property
    def runs(self) -> Path:
        """Temporary folder of the sorted runs."""
        return self.root / "runs"

    @property
    def run_commits(self) -> CommitLog:
        """The records of finished runs; they go when the runs go."""
        return CommitLog(self.runs / "commits", self.runs, fingerprint(self.plan))

    def quantizer(self, name: str) -> Path:
        """One of the quantisers' arrays."""
        return self.root / "quantizer" / name

    def lists(self, segment: str, name: str) -> Path:
        """One of a segment's list-ordered arrays."""
        return self.root / "lists" / segment / name


def open_index(store_root: Path, name: str) -> IndexFolder:
    """The index of that name. Raises UnfinishedError if it isn't there, CorruptStoreError if its plan is damaged."""
    root = index_root(store_root, name)
    if not (root / PLAN_FILE).is_file():
        raise UnfinishedError(f"{root} is missing: run 'knnstore index' again")
    return IndexFolder(root, from_json(IndexPlan, load_json(root / PLAN_FILE), str(root / PLAN_FILE)))


def require_same_segments(plan: IndexPlan, store: Datastore) -> None:
    """Raise MismatchError unless the index was made from the store's present segments."""
    have = [_reference(segment) for segment in store.segments]
    for known, segment in zip(plan.segments, have, strict=False):
        if known != segment:
            raise MismatchError(
                f"the index was made from another segment {known.name} ({known.fingerprint[:12]}, {known.rows} rows; "
                f"now {segment.fingerprint[:12]}, {segment.rows} rows): run 'knnstore index' again"
            )
    if len(plan.segments) != len(have) or plan.dimension != store.segments[0].dimension:
        raise MismatchError(
            f"the index knows {len(plan.segments)} segments of {plan.dimension} dimensions, the store has {len(have)} "
            f"of {store.segments[0].dimension}: run 'knnstore index' again"
        )


def segment_references(store: Datastore) -> tuple[SegmentReference, ...]:
    """The store's segments that hold keys, which have to be of one dtype."""
    if not store.rows:
        raise UnfinishedError(f"{store.root} holds no keys: ingest some text first")
    dtypes = {segment.plan.key_dtype for segment in store.segments}
    if len(dtypes) > 1:
        raise MismatchError(f"the segments' keys are {' and '.join(sorted(dtypes))}: an index needs one dtype for all")
    return tuple(_reference(segment) for segment in store.segments)


def _reference(segment: Segment) -> SegmentReference:
    # zarr stores the last chunk whole, so a segment of few keys gets chunks of just as many rows
    chunk_rows = min(segment.plan.chunk_rows, segment.rows)
    return SegmentReference(segment.root.name, segment.fingerprint, segment.rows, chunk_rows)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, for good."""
    if path.exists():
        with storage_errors("remove", path):
            shutil.rmtree(path)
            sync_folder(path.parent)
