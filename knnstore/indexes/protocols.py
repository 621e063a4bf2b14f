"""What a type of index can do, and what can be asked of an index that is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from knnstore.errors import UsageError
from knnstore.indexes.work import DryRun, IndexOptions

if TYPE_CHECKING:  # a store is described without loading torch
    import torch

    from knnstore.arrays import Float32, Int64
    from knnstore.datastore.edits import Edit
    from knnstore.datastore.origins import KeptDocuments
    from knnstore.datastore.segment import Segment
    from knnstore.datastore.store import Datastore
    from knnstore.indexes.plan import Check, IndexFolder, IndexPlan, SegmentReference
    from knnstore.indexes.work import Work
    from knnstore.neighbours import Neighbours
    from knnstore.planning import IndexResources
    from knnstore.scheduling import Job

Method = Literal["auto", "lists", "quantised", "exact"]
Progress = Callable[[int], None]


class OpenIndex(Protocol):
    """All segments of a store, searched together. Hidden documents are never found, and others take their places.

    A list is whatever of the index a search can leave out, and ``nprobe`` how many a query reads by default: both are
    1 for an index that is always read as a whole.
    """

    nprobe: int

    @property
    def plan(self) -> IndexPlan:
        """Return the plan that it was made by."""
        ...

    def search(
        self,
        queries: Float32,
        k: int,
        nprobe: int | None = None,
        *,
        method: Method = "lists",
        rows: bool = False,
        memory: int = 2**30,
        progress: Progress | None = None,
    ) -> Neighbours:
        """Return the k nearest keys of each query, as far as the method finds them.

        Args:
            queries: float32 (n, d), finite.
            k: neighbours a query; where fewer are found the rest is padded with inf and −1.
            nprobe: lists a query, at most nlist; the index's default if None.
            method: ``lists``, exact distances of all keys in the probed lists; ``quantised``, distances of their
                codes, if it has any; ``exact``, every key of the store; ``auto``, what is fastest for a few queries.
            rows: whether to say the neighbours' row numbers.
            memory: bytes for the working set, besides the queries and the result; fewer mean more passes.
            progress: told of finished (query, list) pairs, or (query, key) pairs if exact.

        Raises UsageError or NumericsError for arguments that don't fit, CorruptStoreError for damaged chunks.
        """
        ...

    def prepare(self) -> None:
        """Open what queries that come one at a time will read, so that the first of them needn't wait for it."""
        ...

    @property
    def check(self) -> Check:
        """Return the result of the self-check, over all segments."""
        ...

    def words(self, method: Method, nprobe: int, k: int = 0) -> str:
        """Return how ``search`` finds k neighbours, for people."""
        ...

    def list_sizes(self) -> Int64:
        """Return the keys in each list: int64 (nlist,)."""
        ...

    def within(self, first: int, last: int) -> OpenIndex:
        """Return the same index with lists ``[first, last)`` alone; the others look empty."""
        ...


class IndexInfo(Protocol):
    """A finished index as ``info`` tells of it: a dataclass."""

    @property
    def rows(self) -> int:
        """Return the number of keys in it."""
        ...

    @property
    def check(self) -> Check:
        """Return the result of its self-check."""
        ...

    @property
    def words(self) -> str:
        """Return what it is, for people."""
        ...


@dataclass(frozen=True, slots=True)
class FaissFile:
    """An index as a file that ``faiss.read_index`` reads, of about so many bytes.

    ``write(path, advance)`` writes it and calls ``advance`` with numbers of keys. Removed documents are left out, and
    an id is the number of a row among the others.
    """

    bytes: int
    write: Callable[[Path, Callable[[float], None]], None]


class Forecast(Protocol):
    """What a build would make and take: a dataclass."""

    @property
    def resources(self) -> IndexResources:
        """Return what it takes of memory and disk."""
        ...

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return what it says, for people."""
        ...


class IndexType(Protocol):
    """A type of index: how it is planned, made, opened, carried over and described.

    Derive a type from it, and override all that it can do better than this. What is in a folder is up to the type,
    except for ``index.json``, the commit records and the self-check (see ``knnstore.indexes.plan``).
    """

    holds_keys: bool = False
    """Whether what it holds of a segment includes ``keys``, ``values`` and ``rows``, in one order, whatever it is."""

    def parse(self, value: Any, where: str) -> IndexPlan:
        """Return the plan in the JSON of an index of this type.

        Raises CorruptStoreError, with ``where`` the JSON is from.
        """
        ...

    def plan(self, store: Datastore, options: IndexOptions, job: Job, present: IndexFolder[Any] | None) -> Work:
        """Return the work on the ``present`` index of this type if it serves what is asked for, else on a new one.

        Raises UsageError for options that don't fit the keys, ResourceError if memory or disk are too small.
        """
        ...

    def dry_run(self, store: Datastore, work: Work, says: Sequence[str], job: Job) -> Forecast:
        """Return what the work, described so far as it ``says``, takes; leave nothing on the disk."""
        return DryRun(work.rows, work.resources, None, 0.0, tuple(says))

    def train(self, folder: IndexFolder[Any], store: Datastore, job: Job) -> None:
        """Make what the segments share, unless it is there, and commit it to ``folder.commits``."""

    def fill(self, folder: IndexFolder[Any], segment: Segment, resources: IndexResources, job: Job) -> None:
        """Make or resume what the index holds of a segment, and commit it to ``folder.list_commits``."""
        ...

    def open(
        self, store: Datastore, folder: IndexFolder[Any], *, checked: bool = True, device: torch.device | None = None
    ) -> OpenIndex:
        """Open the index of all segments of a store.

        ``checked``: whether each segment needs its self-check. ``device``: where many queries are compared, None for
        this host. Raises UnfinishedError if a segment isn't in the index, MismatchError if it was made from another,
        CorruptStoreError if what is on disk isn't what was planned.
        """
        ...

    def carry(
        self, base: Datastore, edit: Edit, segment: Segment, sources: Sequence[KeptDocuments], job: Job
    ) -> IndexFolder[Any] | None:
        """Index the copied ``segment`` of the writer's store by the index of ``base``, or resume that.

        Nothing of keys that aren't copied may be left in it. Return None, with nothing done, if the segment has to be
        indexed from its keys. The caller checks and publishes the index. Raises ResourceError if memory is too small.
        """
        return None

    def describe(self, folder: IndexFolder[Any], rows: int, check: Check) -> IndexInfo:
        """Return what ``info`` shows of an index of so many keys; read no array and load no library."""
        ...

    def drift(self, folder: IndexFolder[Any], references: Sequence[SegmentReference]) -> float | None:
        """Return how much less the index suits segments that are later than its training; 1 if it suits them as well.

        None if none is later, or if the index isn't trained.
        """
        return None

    def recipe(self, plan: Any) -> dict[str, Any]:
        """Return what a repair records to make an index again: JSON, with the plan's ``kind``."""
        return {"kind": plan.kind}

    def options(self, recipe: Any, where: str) -> IndexOptions:
        """Return the options of a recipe. Raises CorruptStoreError, with ``where`` it is from, if it is damaged."""
        return IndexOptions(kind=recipe["kind"])

    def faiss_file(self, store: Datastore) -> FaissFile:
        """Return the store's index as a file of faiss. Raises UsageError if faiss has no index of this type."""
        raise UsageError(f"the index of {store.root} is none that faiss has: export the keys, as memmap or parquet")
