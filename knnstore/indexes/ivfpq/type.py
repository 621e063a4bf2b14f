"""The IVF-PQ index as an index type. Modules that need faiss or torch are imported when they are used."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from knnstore.datastore.edits import Edit
from knnstore.datastore.origins import KeptDocuments
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.indexes.ivfpq.plan import IvfPqFolder, IvfPqPlan, parse_plan
from knnstore.indexes.ivfpq.planning import dry_run, plan_work
from knnstore.indexes.plan import Check, SegmentReference
from knnstore.indexes.protocols import FaissFile, Forecast, IndexType, OpenIndex
from knnstore.indexes.work import IndexOptions, Work
from knnstore.planning import IndexResources
from knnstore.records import from_json
from knnstore.scheduling import Job

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class IvfPqInfo:
    """A finished index of ``rows`` keys. ``check``: result of its self-check."""

    name: str
    rows: int
    nlist: int
    pq_bytes: int
    nprobe: int
    train_rows: int
    check: Check

    @property
    def words(self) -> str:
        """Return a description of the index."""
        return (
            f"{self.nlist:,} lists, codes of {self.pq_bytes} bytes, trained on {self.train_rows:,} keys; "
            f"{self.nprobe} lists searched per query"
        )


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Recipe for rebuilding an index."""

    nlist: int
    pq_bytes: int
    train_rows: int
    nprobe: int
    rotation: str | None
    seed: int


class IvfPq(IndexType):
    """See ``IndexType``."""

    holds_keys = True

    def plan(self, store: Datastore, options: IndexOptions, job: Job, present: IvfPqFolder | None) -> Work:
        """See ``IndexType``."""
        return plan_work(store, options, job, present)

    def dry_run(self, store: Datastore, work: Work, says: Sequence[str], job: Job) -> Forecast:
        """See ``IndexType``."""
        return dry_run(store, work, says, job)

    def train(self, folder: IvfPqFolder, store: Datastore, job: Job) -> None:
        """See ``IndexType``."""
        from knnstore.indexes.ivfpq.building import train_on_sample

        train_on_sample(folder, store, job)

    def fill(self, folder: IvfPqFolder, segment: Segment, resources: IndexResources, job: Job) -> None:
        """See ``IndexType``."""
        from knnstore.indexes.ivfpq.building import fill_lists

        fill_lists(folder, segment, resources.run_chunks, job)

    def carry(
        self, base: Datastore, edit: Edit, segment: Segment, sources: Sequence[KeptDocuments], job: Job
    ) -> IvfPqFolder | None:
        """See ``IndexType``."""
        from knnstore.indexes.ivfpq.carrying import carry_index

        return carry_index(base, edit, segment, sources, job)

    def drift(self, folder: IvfPqFolder, references: Sequence[SegmentReference]) -> float | None:
        """See ``IndexType``."""
        from knnstore.indexes.ivfpq.building import drift

        return drift(folder, references)

    def recipe(self, plan: IvfPqPlan) -> dict[str, Any]:
        """See ``IndexType``."""
        return {field.name: getattr(plan, field.name) for field in fields(Rebuild)}

    def options(self, recipe: Any, where: str) -> IndexOptions:
        """See ``IndexType``."""
        rebuild = from_json(Rebuild, recipe, where)
        return IndexOptions(
            nlist=rebuild.nlist,
            pq_bytes=rebuild.pq_bytes,
            train_sample=rebuild.train_rows,
            nprobe=rebuild.nprobe,
            rotation=rebuild.rotation,
            seed=rebuild.seed,
        )

    def parse(self, value: Any, where: str) -> IvfPqPlan:
        """See ``IndexType``."""
        return parse_plan(value, where)

    def open(
        self, store: Datastore, folder: IvfPqFolder, *, checked: bool = True, device: "torch.device | None" = None
    ) -> OpenIndex:
        """See ``IndexType``."""
        from knnstore.indexes.ivfpq.search import Searcher

        return Searcher(store, folder, checked=checked, device=device)

    def describe(self, folder: IvfPqFolder, rows: int, check: Check) -> IvfPqInfo:
        """See ``IndexType``."""
        plan = folder.plan
        return IvfPqInfo(folder.name, rows, plan.nlist, plan.pq_bytes, plan.nprobe, plan.train_rows, check)

    def faiss_file(self, store: Datastore) -> FaissFile:
        """See ``IndexType``."""
        from knnstore.indexes.ivfpq.faissfile import faiss_bytes, write_faiss

        return FaissFile(faiss_bytes(store), partial(write_faiss, store))
