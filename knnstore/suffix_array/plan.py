"""The plan of a store's exact-match memory, and its layout on disk.

::

    suffixes/<first 16 digits of the plan's fingerprint>/
        suffixes.json      SuffixPlan: everything that the bytes below depend on
        zarr.json          a Zarr group, uncompressed, so that it can be mapped:
        stream/            (rows + documents,)  uint16 | uint32   tokens of every document after a separator
        order/             (rows,)              uint32 | uint64   positions of tokens in the stream, by their contexts
        commits/           one record per chunk, and ``done`` at the end
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.commits import DONE, CommitLog
from knnstore.datastore.layout import SUFFIX_PLAN, SUFFIXES
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import remove_tree
from knnstore.errors import UnfinishedError
from knnstore.records import fingerprint
from knnstore.suffix_array.contexts import DEPTH, Packing

FORMAT_VERSION = 1
_CHUNK = 2**23


@dataclass(frozen=True, slots=True)
class SuffixPlan:
    """Everything that the bytes depend on.

    ``hidden``: digest of the rows of removed documents, which are left out. ``rows``: number of tokens. ``positions``:
    number of tokens and separators, one per document with tokens.
    """

    version: int
    depth: int
    vocabulary: int
    segments: tuple[str, ...]
    hidden: str
    rows: int
    positions: int

    @property
    def packing(self) -> Packing:
        """Return the packing of contexts."""
        return Packing(self.vocabulary)

    @property
    def order_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Return the smallest unsigned dtype, of four or eight bytes, for a position."""
        return np.dtype(np.uint32 if self.positions <= 2**32 else np.uint64)

    @property
    def bytes(self) -> int:
        """Return the bytes on disk."""
        return self.positions * self.packing.dtype.itemsize + self.rows * self.order_dtype.itemsize


@dataclass(frozen=True, slots=True)
class SuffixFolder:
    """The folder of an exact-match memory and its plan."""

    root: Path
    plan: SuffixPlan

    @property
    def commits(self) -> CommitLog:
        """Return the records of finished tasks."""
        return CommitLog(self.root / "commits", self.root, fingerprint(self.plan))

    def array(self, name: str) -> Path:
        """Return the folder of an array."""
        return self.root / name

    @property
    def finished(self) -> bool:
        """Return whether the memory is complete."""
        return (self.root / SUFFIX_PLAN).is_file() and self.commits.find(DONE) is not None


def chunk_rows(rows: int) -> int:
    """Return the rows per chunk of an array of ``rows``."""
    return min(_CHUNK, rows)


def suffix_folder(store: Datastore) -> SuffixFolder:
    """Return the folder for the store's current segments, finished or not. Raises UnfinishedError if it is empty."""
    if not store.live_rows:
        raise UnfinishedError(f"{store.root} holds no tokens: ingest some text first")
    documents = sum(len(live_documents(store, number)) for number in range(len(store.segments)))
    hidden = [(ranges.begins.tolist(), ranges.ends.tolist()) for ranges in store.hidden]
    plan = SuffixPlan(
        version=FORMAT_VERSION,
        depth=DEPTH,
        vocabulary=store.manifest.model.vocabulary,
        segments=tuple(segment.fingerprint for segment in store.segments),
        hidden=fingerprint(hidden),
        rows=store.live_rows,
        positions=store.live_rows + documents,
    )
    return SuffixFolder(store.root / SUFFIXES / fingerprint(plan)[:16], plan)


def discard_others(root: Path, kept: str | None) -> None:
    """Remove the exact-match memories of the store at ``root``, but for the one of that name."""
    for path in sorted((root / SUFFIXES).glob("*")):
        if path.name != kept:
            remove_tree(path)


def live_documents(store: Datastore, segment: int) -> Int64:
    """Return the indices of a segment's documents that have tokens and aren't removed: int64, ascending."""
    table, hidden = store.segments[segment].documents, store.hidden[segment]
    return np.flatnonzero((table.tokens > 0) & ~hidden.contains(table.first_row))
