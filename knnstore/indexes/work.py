"""What can be asked of an index build, and the work that this comes to."""

from dataclasses import dataclass
from typing import Any

from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.diskspace import bytes_below
from knnstore.indexes.plan import IndexFolder
from knnstore.planning import BuildSeconds, IndexResources

_MORE = 1.05  # disk asked for beyond the plan's bytes: metadata, commit records, blocks of the file system


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """What a user may decide; None leaves it to the planner. ``drop_keys``: in the end keep the keys in the lists
    alone. ``kind``: the type of the index; None for that of the one that there is, or IVF-PQ.
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
    """What is to be done: the ``new`` segments, with keys, that the index has nothing of yet.

    ``trains``: whether the index is a new one. ``words``: what it is to be, for people. ``notes``: what was planned
    otherwise than is usual, and why, in sentences.
    """

    folder: IndexFolder[Any]
    new: tuple[Segment, ...]
    resources: IndexResources
    trains: bool
    words: str
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Keys of the new segments."""
        return sum(segment.rows for segment in self.new)

    @property
    def room(self) -> int:
        """Bytes on disk that it needs beyond what is written of it."""
        folder, names = self.folder, [segment.root.name for segment in self.new]
        written = bytes_below(*(path for name in names for path in (folder.lists(name), folder.runs(name))))
        return max(0, int((self.resources.disk_bytes + self.resources.temporary_bytes) * _MORE) - written)


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a build would make and take. ``seconds`` as measured on this machine; None where nothing was measured."""

    new_rows: int
    resources: IndexResources
    seconds: BuildSeconds | None
    total_seconds: float
    sentences: tuple[str, ...]


def new_segments(store: Datastore, *, trains: bool) -> tuple[Segment, ...]:
    """The segments with keys that aren't in the store's index, or all of them for one that is new."""
    indexed = () if trains else store.manifest.indexed
    return tuple(segment for segment in store.segments if segment.rows and segment.root.name not in indexed)
