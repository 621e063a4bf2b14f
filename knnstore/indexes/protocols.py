"""Protocols of index types and of open indexes."""

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
    """An index over all segments of a store. Hidden documents are never returned; the next nearest keys are instead.

    A list is a part of the index that a search can skip, and ``nprobe`` is the number of lists that a query reads by
    default. An index that is always read as a whole has one list and an nprobe of 1.
    """

    nprobe: int

    @property
    def plan(self) -> IndexPlan:
        """Return the plan of the index."""
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
        """Return the k nearest keys of each query among those that the method compares.

        Args:
            queries: float32 (n, d), finite.
            k: neighbours per query; if fewer are found, the rest is padded with inf and −1.
            nprobe: lists per query, at most nlist; the index's default if None.
            method: ``lists``, exact distances of all keys in the probed lists; ``quantised``, distances of their
                codes, if there are any; ``exact``, all keys of the store; ``auto``, the fastest for a few queries.
            rows: whether to return the neighbours' row numbers.
            memory: bytes for the working set, besides the queries and the result; less memory means more passes.
            progress: called with the number of finished (query, list) pairs, or (query, key) pairs if exact.

        Raises UsageError or NumericsError for invalid arguments, CorruptStoreError for damaged chunks.
        """
        ...

    def prepare(self) -> None:
        """Open the files that single queries will read, so that the first query doesn't wait for that."""
        ...

    @property
    def check(self) -> Check:
        """Return the result of the self-check, over all segments."""
        ...

    def words(self, method: Method, nprobe: int, k: int = 0) -> str:
        """Return a description of how ``search`` finds k neighbours."""
        ...

    def list_sizes(self) -> Int64:
        """Return the number of keys in each list: int64 (nlist,)."""
        ...

    def within(self, first: int, last: int) -> OpenIndex:
        """Return the same index with only lists ``[first, last)``; the others appear empty."""
        ...


class IndexInfo(Protocol):
    """A finished index as shown by ``info``: a dataclass."""

    @property
    def rows(self) -> int:
        """Return the number of keys in it."""
        ...

    @property
    def check(self) -> Check:
        """Return the result of the self-check."""
        ...

    @property
    def words(self) -> str:
        """Return a description of the index."""
        ...


@dataclass(frozen=True, slots=True)
class FaissFile:
    """An index as a file for ``faiss.read_index``, of about ``bytes`` bytes.

    ``write(path, advance)`` writes it and calls ``advance`` with numbers of keys. Removed documents are omitted, and
    an id is the number of a row among the remaining rows.
    """

    bytes: int
    write: Callable[[Path, Callable[[float], None]], None]


class Forecast(Protocol):
    """Forecast of a build: a dataclass."""

    @property
    def resources(self) -> IndexResources:
        """Return the memory and disk space that it needs."""
        ...

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return the forecast in sentences."""
        ...


class IndexType(Protocol):
    """A type of index: how it is planned, built, opened, carried over and described.

    Derive a class and override what the type supports beyond these defaults. The files in a folder depend on the type,
    except for ``index.json``, the commit records and the self-check (see ``knnstore.indexes.plan``).
    """

    holds_keys: bool = False
    """Whether the index includes ``keys``, ``values`` and ``rows`` of each segment, all in the same (any) order."""

    def parse(self, value: Any, where: str) -> IndexPlan:
        """Return the plan in the JSON of an index of this type.

        Raises CorruptStoreError, which names ``where`` the JSON is from.
        """
        ...

    def plan(self, store: Datastore, options: IndexOptions, job: Job, present: IndexFolder[Any] | None) -> Work:
        """Return the work on the ``present`` index of this type if it satisfies the options, else on a new one.

        Raises UsageError for options that don't fit the keys, ResourceError for too little memory or disk space.
        """
        ...

    def dry_run(self, store: Datastore, work: Work, says: Sequence[str], job: Job) -> Forecast:
        """Return a forecast of the work, whose description so far is ``says``; leave nothing on disk."""
        return DryRun(work.rows, work.resources, None, 0.0, tuple(says))

    def train(self, folder: IndexFolder[Any], store: Datastore, job: Job) -> None:
        """Make what the segments share, unless it exists, and commit it to ``folder.commits``."""

    def fill(self, folder: IndexFolder[Any], segment: Segment, resources: IndexResources, job: Job) -> None:
        """Make or resume the index of one segment, and commit it to ``folder.list_commits``."""
        ...

    def open(
        self, store: Datastore, folder: IndexFolder[Any], *, checked: bool = True, device: torch.device | None = None
    ) -> OpenIndex:
        """Open the index of all segments of a store.

        ``checked``: whether each segment must have its self-check. ``device``: device for many queries; None for this
        host. Raises UnfinishedError if a segment isn't in the index, MismatchError if the index was made from another
        one, CorruptStoreError if the files differ from the plan.
        """
        ...

    def carry(
        self, base: Datastore, edit: Edit, segment: Segment, sources: Sequence[KeptDocuments], job: Job
    ) -> IndexFolder[Any] | None:
        """Index the copied ``segment`` of the writer's store with the index of ``base``, or resume this.

        No trace of keys that aren't copied may remain. Return None, without any change, if the segment must be indexed
        from its keys. The caller checks and publishes the index. Raises ResourceError for too little memory.
        """
        return None

    def describe(self, folder: IndexFolder[Any], rows: int, check: Check) -> IndexInfo:
        """Return what ``info`` shows of an index of ``rows`` keys, without reading arrays or loading libraries."""
        ...

    def drift(self, folder: IndexFolder[Any], references: Sequence[SegmentReference]) -> float | None:
        """Return how much worse the index fits segments added after its training, as a factor; 1 if equally well.

        Return None if there are no such segments or the index isn't trained.
        """
        return None

    def recipe(self, plan: Any) -> dict[str, Any]:
        """Return what a repair records in order to rebuild the index: JSON, with the plan's ``kind``."""
        return {"kind": plan.kind}

    def options(self, recipe: Any, where: str) -> IndexOptions:
        """Return the options of a recipe. Raises CorruptStoreError, naming ``where`` it is from, if it is damaged."""
        return IndexOptions(kind=recipe["kind"])

    def faiss_file(self, store: Datastore) -> FaissFile:
        """Return the store's index as a file of faiss. Raises UsageError if faiss has no index of this type."""
        raise UsageError(f"faiss has no index like that of {store.root}: export the keys as memmap or parquet instead")
