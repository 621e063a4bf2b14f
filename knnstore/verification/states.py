"""Check the files of a store's states: the record of each change, and the tables of what it removed."""

from collections.abc import Iterator
from pathlib import Path

from knnstore.datastore.history import TAKEDOWN, load_change, record_path, takedown_path, takedown_state
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.removed import removed_path
from knnstore.datastore.takedowns import takedown_damage
from knnstore.errors import CorruptStoreError, KnnstoreError


def takedown_problem(path: Path) -> str | None:
    """Return what is wrong with a file of removed texts, or None; its SHA-256 is in the record of the change."""
    root = path.parent.parent
    try:
        return takedown_damage(root, load_change(root, takedown_state(path) or 0))
    except KnnstoreError:
        return "belongs to no readable record of a change"


def missing_states(root: Path, files: set[Path]) -> Iterator[Path]:
    """Yield the missing files of the present and earlier states: records, and tables of removed documents and texts."""
    try:
        manifest = load_manifest(root)
    except CorruptStoreError:
        return
    for state in range(1, min(manifest.state, len(files)) + 1):  # a damaged manifest may claim any number
        if record_path(root, state) not in files:
            yield record_path(root, state)
            continue
        try:
            change = load_change(root, state)
        except KnnstoreError:  # reported already
            continue
        if TAKEDOWN in change.facts and takedown_path(root, change.state) not in files:
            yield takedown_path(root, change.state)
    if manifest.removed is not None and removed_path(root, manifest.removed) not in files:
        yield removed_path(root, manifest.removed)
