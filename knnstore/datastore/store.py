"""A store: a folder ``NAME.knnstore`` with a manifest, segments and an index."""

import re
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from knnstore.datastore.contents import require_plain
from knnstore.datastore.manifest import MANIFEST_FILE, Manifest, load_manifest
from knnstore.datastore.segment import Segment
from knnstore.errors import StoreNotFoundError, UnfinishedError, UsageError

SUFFIX = ".knnstore"


class Datastore:
    """A finished store, opened for reading. What is open stays as it was: segments and indexes are immutable."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest: Manifest = load_manifest(root)
        require_plain(root)
        if not self.manifest.segments:
            raise UnfinishedError(f"the ingest into {root} hasn't ended: run the same 'knnstore ingest' again")

    @property
    def name(self) -> str:
        """The store's name, without the suffix."""
        return self.root.name.removesuffix(SUFFIX)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The finished segments, oldest first."""
        return tuple(Segment(segment_root(self.root, name)) for name in self.manifest.segments)

    @cached_property
    def rows(self) -> int:
        """(key, value) pairs in all segments."""
        return sum(segment.rows for segment in self.segments)


def segment_root(root: Path, name: str) -> Path:
    """Folder of a segment."""
    return root / "segments" / name


def index_root(root: Path, name: str) -> Path:
    """Folder of an index."""
    return root / "index" / name


def store_path(store: str) -> Path:
    """The folder that a store's name, path or ``file://`` URL means.

    A name becomes ``NAME.knnstore`` in the current folder, so that the store of ``books/`` can lie beside it;
    a path gets the suffix unless it has it, or is a store already.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", store):
        parts = urlsplit(store)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise UsageError(f"--store {store}: only local paths and file:// URLs are supported by this version")
        store = unquote(parts.path)
    path = Path(store)
    if not path.name or path.name == "..":
        raise UsageError(f"--store {store!r} has no name: give a name such as 'books', or a path that ends in one")
    if path.name.endswith(SUFFIX) or (path / MANIFEST_FILE).is_file():
        return path
    return path.with_name(path.name + SUFFIX)


def default_store(corpus: str) -> str:
    """The store's name for a corpus: ``books/`` makes ``books``, ``data/*.txt`` makes ``data``."""
    path = Path(corpus)
    while any(character in path.name for character in "*?["):
        path = path.parent
    name = path.resolve().name if path.is_dir() else path.name.split(".")[0]
    return name or "store"


def only_store(folder: Path) -> Path:
    """The one store in a folder. Raises StoreNotFoundError if there is none, UsageError that lists them if many."""
    found = sorted(path.parent for path in folder.glob(f"*{SUFFIX}/{MANIFEST_FILE}"))
    if not found:
        raise StoreNotFoundError(f"no store in {folder.resolve()}: make one with 'knnstore ingest --corpus PATH'")
    if len(found) > 1:
        names = ", ".join(path.name.removesuffix(SUFFIX) for path in found)
        raise UsageError(f"several stores here ({names}): say which with --store NAME")
    return found[0]
