"""Options of an index build, and the work that they lead to."""

from dataclasses import dataclass
from typing import Any

from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.diskspace import bytes_below
from knnstore.indexes.plan import IndexFolder
from knnstore.planning import BuildSeconds, IndexResources

_MORE = 1.05  # factor on the planned bytes: metadata, commit records, blocks of the file system


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """The user's options; None leaves a choice to the planner.

    ``drop_keys``: after the build, keep the keys only in the lists. ``kind``: type of the index; None for that of the
    existing index, or IVF-PQ.
    """

    nlist: int | None = None
    pq_bytes: int | None = None
    train_sample: int | None = None
    nprobe: int | None = None
    rotation: str | None = None
    seed: int = 0
    overwrite: bool = False
    drop_keys: bool = False
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """Work to be done: indexing of the ``new`` segments, which have keys and aren't in the index yet.

    ``trains``: whether the index is new. ``words``: description of the index, for people. ``notes``: how the plan
    differs from the usual one and why, one sentence each.
    """

    folder: IndexFolder[Any]
    new: tuple[Segment, ...]
    resources: IndexResources
    trains: bool
    words: str
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Return the number of keys of the new segments."""
        return sum(segment.rows for segment in self.new)

    @property
    def room(self) -> int:
        """Return the bytes on disk that are needed beyond those already written."""
        folder, names = self.folder, [segment.root.name for segment in self.new]
        written = bytes_below(*(path for name in names for path in (folder.lists(name), folder.runs(name))))
        return max(0, int((self.resources.disk_bytes + self.resources.temporary_bytes) * _MORE) - written)


@dataclass(frozen=True, slots=True)
class DryRun:
    """Forecast of a build. ``seconds``: as measured on this machine; None if nothing was measured."""

    new_rows: int
    resources: IndexResources
    seconds: BuildSeconds | None
    total_seconds: float
    sentences: tuple[str, ...]


def new_segments(store: Datastore, *, trains: bool) -> tuple[Segment, ...]:
    """Return the segments with keys that aren't in the store's index, or all with keys if the index is new."""
    indexed = () if trains else store.manifest.indexed
    return tuple(segment for segment in store.segments if segment.rows and segment.root.name not in indexed)
