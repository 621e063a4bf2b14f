"""What a type of index can do, and what can be asked of an index that is open."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from knnstore.datastore.edits import Edit
from knnstore.datastore.origins import Source
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError
from knnstore.index.plan import Check, IndexFolder, IndexPlan, SegmentReference
from knnstore.index.work import DryRun, IndexOptions, Work
from knnstore.neighbours import Float32, Int64, Neighbours
from knnstore.planning import IndexResources
from knnstore.scheduling import Job

if TYPE_CHECKING:  # a store is described without loading it
    import torch

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
        """The plan that it was made by."""
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
        """The k nearest keys of each query, as far as the method finds them.

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
        """The result of the self-check, over all segments."""
        ...

    def words(self, method: Method, nprobe: int, k: int = 0) -> str:
        """How ``search`` finds k neighbours, for people."""
        ...

    def list_sizes(self) -> Int64:
        """Keys in each list: int64 (nlist,)."""
        ...

    def within(self, first: int, last: int) -> "OpenIndex":
        """The same index with lists ``[first, last)`` alone; the others look empty."""
        ...


class IndexInfo(Protocol):
    """A finished index as ``info`` tells of it: a dataclass."""

    @property
    def rows(self) -> int:
        """Keys in it."""
        ...

    @property
    def check(self) -> Check:
        """The result of its self-check."""
        ...

    @property
    def words(self) -> str:
        """What it is, for people."""
        ...


@dataclass(frozen=True, slots=True)
class FaissFile:
    """An index as a file that ``faiss.read_index`` reads, of about so many bytes.

    ``write(path, advance)`` writes it; ``advance`` is told of keys. Removed documents are left out, and an id is the
    number of a row among those that are left.
    """

    bytes: int
    write: Callable[[Path, Callable[[float], None]], None]


class Forecast(Protocol):
    """What a build would make and take: a dataclass."""

    @property
    def resources(self) -> IndexResources:
        """What it takes of memory and disk."""
        ...

    @property
    def sentences(self) -> tuple[str, ...]:
        """What it says, for people."""
        ...


class IndexType(Protocol):
    """A type of index: how it is planned, made, opened, carried over and described.

    An own type inherits what it has no better answer for.
    """

    holds_keys: bool = False
    """Whether its folder of a segment has ``keys``, ``values`` and ``rows`` in some order, so that others can go."""

    def plan(self, store: Datastore, options: IndexOptions, job: Job, present: IndexFolder[Any] | None) -> Work:
        """The work on the ``present`` index of this type if it serves what is asked for, else on a new one.

        Raises UsageError for options that don't fit the keys, ResourceError if memory or disk can't do.
        """
        ...

    def dry_run(self, store: Datastore, work: Work, says: Sequence[str], job: Job) -> Forecast:
        """What the work, of which it ``says`` so much, would make and take; nothing is left on the disk."""
        return DryRun(work.rows, work.resources, None, 0.0, tuple(says))

    def train(self, folder: IndexFolder[Any], store: Datastore, job: Job) -> None:
        """Make what the segments share, in a folder that is begun, unless it is there; commits to ``commits``."""

    def fill(self, folder: IndexFolder[Any], segment: Segment, resources: IndexResources, job: Job) -> None:
        """Make what the index holds of a segment, or go on with that; commits to ``list_commits``."""
        ...

    def carry(
        self, base: Datastore, edit: Edit, segment: Segment, sources: Sequence[Source], job: Job
    ) -> IndexFolder[Any] | None:
        """Index the copied ``segment`` of the writer's store by the index of ``base``, or go on with that.

        Nothing of keys that aren't copied may be left in it. None, and nothing is done, if the segment is to be
        indexed anew. The caller checks the index and publishes it. Raises ResourceError if the memory can't do.
        """
        return None

    def drift(self, folder: IndexFolder[Any], references: Sequence[SegmentReference]) -> float | None:
        """How much less the index suits the keys of segments that came after its training, 1 if as well; None if none
        did, or if it isn't trained."""
        return None

    def recipe(self, plan: Any) -> dict[str, Any]:
        """What a repair records of an index to make it again: JSON. The ``kind`` is in it as in the plan's."""
        ...

    def options(self, recipe: Any, where: str) -> IndexOptions:
        """The options of a recipe, which may be damaged. Raises CorruptStoreError that names ``where`` it is from."""
        ...

    def parse(self, value: Any, where: str) -> IndexPlan:
        """The plan in the JSON of an index of this type. Raises CorruptStoreError that names ``where`` it is from."""
        ...

    def open(
        self, store: Datastore, folder: IndexFolder[Any], *, checked: bool = True, device: "torch.device | None" = None
    ) -> OpenIndex:
        """The index of a store's segments, to be searched.

        ``checked``: whether each segment has to have passed its self-check. ``device``: where many queries are
        compared, None for this host. Raises UnfinishedError if a segment isn't in the index, MismatchError if it was
        made from another, CorruptStoreError where what is on disk isn't what was planned.
        """
        ...

    def describe(self, folder: IndexFolder[Any], rows: int, check: Check) -> IndexInfo:
        """What ``info`` tells of an index of so many keys; reads no array and loads no library."""
        ...

    def faiss_file(self, store: Datastore) -> FaissFile:
        """The store's index as a file of faiss. Raises UsageError if faiss has no index of this type."""
        raise UsageError(f"the index of {store.root} is none that faiss has: export the keys, as memmap or parquet")
