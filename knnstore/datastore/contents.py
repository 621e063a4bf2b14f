"""What may lie in a store's folder: folders and regular files, nothing else."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from knnstore.atomic import TEMPORARY_SUFFIX, storage_errors, sync_folder
from knnstore.errors import CorruptStoreError
from knnstore.objects.path import ObjectPath

LEFTOVERS = (TEMPORARY_SUFFIX, ".partial")
"""Endings of what a killed writer leaves half-written: our files set aside, and Zarr's."""


def require_plain(root: Path) -> None:
    """Raise CorruptStoreError if anything below ``root`` is a link, a FIFO, a socket or a device.

    A store may come from a stranger: a link in it would have files outside of it read, or written to, and a FIFO would
    be waited for. One pass over the folders' entries, which opens none of the files. Object storage has none of them.
    """
    if isinstance(root, ObjectPath):
        return
    for path, kind in entries_below(root):
        if kind is not None:
            raise CorruptStoreError(
                f"{path} is {kind}: a store holds plain files alone, so that nothing outside of it is touched; "
                "put the file itself there, or move the whole store"
            )


def entries_below(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Everything below ``root`` but folders, in a fixed order; with each, what it is if no regular file, in words."""
    if isinstance(root, ObjectPath):
        yield from sorted((path, None) for path, _ in root.below())
        return
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        found: list[os.DirEntry[str]] = []
        # a writer may remove a folder after its parent was read
        with storage_errors("read", folder), suppress(FileNotFoundError), os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path), None
            else:
                yield Path(entry.path), "a link" if entry.is_symlink() else "neither a file nor a folder"


def remove_leftovers(root: Path) -> None:
    """Remove what a killed writer left half-written anywhere in the store. The caller holds it for writing."""
    if isinstance(root, ObjectPath):
        return  # an object is never there by half
    with storage_errors("clean", root):
        for path in [path for path, _ in entries_below(root) if path.suffix in LEFTOVERS]:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
