"""A store: a folder ``NAME.knnstore`` with a manifest, segments and an index."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.history import open_state
from knnstore.datastore.layout import LISTS, SUFFIX, index_root, segment_root
from knnstore.datastore.listed import ListOrder
from knnstore.datastore.manifest import MANIFEST_FILE, Manifest, load_manifest
from knnstore.datastore.removed import Removed, joined, load_removed
from knnstore.datastore.rowranges import RowRanges
from knnstore.datastore.segment import Segment
from knnstore.errors import CorruptStoreError, StoreNotFoundError, UnfinishedError, UsageError
from knnstore.files import files_of, is_url, path_of, schemes
from knnstore.urls import file_path, split_url
from knnstore.wording import command, option


class Datastore:
    """A finished store, opened for reading. An open store never changes: segments and lists are immutable, and no
    writer removes the files of a state that is being read.

    Removed documents keep their row numbers but are hidden: no search finds them, and their held-out text isn't used.
    The stored parts of the documents in ``mask`` are hidden too; their held-out text is still used.
    """

    def __init__(self, root: Path, state: Manifest | None = None) -> None:
        """``state``: a state that a writer keeps while it is read, so it isn't held; None: the present state."""
        self.root = root
        self._lock: IO[bytes] | None = None
        if state is None:
            load_manifest(root)  # raises StoreNotFoundError if there is no store
            files_of(root).require_plain(root)
            state, self._lock = open_state(root)
        self.manifest = state
        if not self.manifest.segments:
            raise UnfinishedError(f"the ingest into {root} hasn't ended: run the same {command('ingest')} again")
        self.mask: Removed = {}

    @property
    def name(self) -> str:
        """Return the store's name, without the suffix."""
        return self.root.name.removesuffix(SUFFIX)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Return the finished segments, oldest first."""
        return tuple(_segment(self.root, self.manifest, name) for name in self.manifest.segments)

    @property
    def special_tokens(self) -> bool:
        """Return whether the spelling of a special token in a document is that token rather than ordinary text."""
        return self.segments[0].plan.special_tokens is not False

    @cached_property
    def rows(self) -> int:
        """Return the number of (key, value) pairs in all segments, hidden ones included; row numbers are below it."""
        return sum(segment.rows for segment in self.segments)

    @cached_property
    def live_rows(self) -> int:
        """Return the number of (key, value) pairs that a search can find."""
        return self.rows - sum(hidden.rows for hidden in self.hidden)

    @cached_property
    def removed(self) -> Removed:
        """Return the documents that were removed from the store but are still on disk."""
        return load_removed(self.root, self.manifest.removed)

    @cached_property
    def hidden(self) -> tuple[RowRanges, ...]:
        """Return, for each segment, the rows that no search may find: those of removed and of masked documents."""
        return tuple(_ranges(segment, joined(self.removed, self.mask)) for segment in self.segments)

    def heldout(self, segment: Segment) -> Int64:
        """Return the indices of a segment's documents that have a held-out part and aren't removed."""
        removed = self.removed.get(segment.root.name, np.empty(0, np.int64))
        return np.setdiff1d(segment.documents.heldout(), removed)

    def masked(self, documents: Removed) -> "Datastore":
        """Return the same store with more documents hidden from searches; their held-out text is still used."""
        return self._changed(self.manifest, joined(self.mask, documents))

    def only(self, segment: str) -> "Datastore":
        """Return the same store with only one of its segments; rows are counted from that segment's first row."""
        return self._changed(with_segments(self.manifest, (segment,)), self.mask)

    def at(self, manifest: Manifest) -> "Datastore":
        """Return the store in another state, which isn't published yet."""
        return self._changed(manifest, {})

    def close(self) -> None:
        """Let writers remove the files of this state once it is replaced. Later reads may fail."""
        if self._lock is not None:
            self._lock.close()

    def _changed(self, manifest: Manifest, mask: Removed) -> "Datastore":
        other = Datastore.__new__(Datastore)
        other.root, other.manifest, other._lock, other.mask = self.root, manifest, self._lock, mask
        return other


def open_segment(root: Path) -> Segment:
    """Return the segment in a folder, as it is in its store's present state."""
    store = root.parent.parent
    return _segment(store, load_manifest(store), root.name)


def _segment(root: Path, manifest: Manifest, name: str) -> Segment:
    dropped = manifest.index is not None and name in (manifest.dropped or ())
    lists = index_root(root, str(manifest.index)) / LISTS / name
    return Segment(segment_root(root, name), ListOrder(lists) if dropped else None)


def with_segments(manifest: Manifest, names: tuple[str, ...], indexed: tuple[str, ...] | None = None) -> Manifest:
    """Return the manifest with only the given segments. ``indexed``: those in the index; None: as at present."""
    kept = tuple(name for name in (manifest.indexed if indexed is None else indexed) if name in names)
    dropped = tuple(name for name in manifest.dropped or () if name in kept)
    return replace(manifest, segments=names, indexed=kept, dropped=dropped or None)


def _ranges(segment: Segment, documents: Removed) -> RowRanges:
    numbers = documents.get(segment.root.name, np.empty(0, np.int64))
    table = segment.documents
    if len(numbers) and not 0 <= int(numbers[0]) <= int(numbers[-1]) < len(table):
        raise CorruptStoreError(f"{segment.root}: document {numbers[-1]} was removed, but there are only {len(table)}")
    return RowRanges.of_documents(table.first_row, table.tokens, numbers)


def store_path(store: str) -> Path:
    """Return the folder of a store, given its name, path or URL (``file://``, ``s3://``, ``gs://``, ``az://``).

    A name becomes ``NAME.knnstore`` in the current folder, so that the store of ``books/`` can be beside it; a path
    gets the suffix unless it has it or is a store already.
    """
    parts = split_url(store)
    if parts is not None and not is_url(store):
        if parts.scheme != "file":
            known = ", ".join(f"{scheme}://" for scheme in schemes())
            remedy = f"{parts.scheme}:// isn't known; give a path, file://, {known}"
            raise UsageError.about("store", store, remedy=remedy)
        store = file_path(parts)
    if "\0" in store:
        raise UsageError.about("store", store, "has a NUL, which no path can have", quoted=True)
    path = path_of(store)
    if is_url(store) and len(path.parts) == 2:
        remedy = f"give the store a name in it, such as {store.rstrip('/')}/books"
        raise UsageError.about("store", store, "is a whole bucket", remedy=remedy)
    if not path.name or path.name == "..":
        remedy = "give a name such as 'books', or a path that ends in one"
        raise UsageError.about("store", store, "has no name", remedy=remedy, quoted=True)
    if path.name.endswith(SUFFIX) or (path / MANIFEST_FILE).is_file():
        return path
    return path.with_name(path.name + SUFFIX)


def default_store(corpus: str) -> str:
    """Return the default name of a corpus's store: ``books`` for ``books/``, ``data`` for ``data/*.txt``."""
    path = Path(corpus)
    while any(character in path.name for character in "*?["):
        path = path.parent
    name = path.resolve().name if path.is_dir() else path.name.split(".")[0]
    return name or "store"


def only_store(folder: Path) -> Path:
    """Return the only store in a folder. Raises StoreNotFoundError for none, UsageError for several."""
    roots = sorted(path.parent for path in folder.glob(f"*{SUFFIX}/{MANIFEST_FILE}"))
    if not roots:
        raise StoreNotFoundError(f"no store in {folder.resolve()}: make one with {command('ingest', corpus='PATH')}")
    if len(roots) > 1:
        names = ", ".join(path.name.removesuffix(SUFFIX) for path in roots)
        raise UsageError(f"several stores here ({names}): say which with {option('store', 'NAME')}")
    return roots[0]
