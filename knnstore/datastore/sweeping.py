"""What no state needs any more leaves the disk: at once, or when the last reader of its state has gone."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from knnstore.atomic import TEMPORARY_SUFFIX, remove_folder, storage_errors, sync_folder
from knnstore.datastore.commits import DONE
from knnstore.datastore.edits import edit_of
from knnstore.datastore.history import changes, is_held, within_reach
from knnstore.datastore.manifest import DIGEST_NAME, SEGMENT_NAME, Manifest, load_manifest
from knnstore.datastore.removed import FOLDER as REMOVED
from knnstore.datastore.removed import removed_path
from knnstore.datastore.segment import KEYS_RECORDS, LAYOUT_TASK
from knnstore.datastore.store import index_root, segment_root
from knnstore.objects.path import ObjectPath

_EPOCH_DIGITS = 5
_LONGEST_NAME = 9


@dataclass(slots=True)
class Swept:
    """``bytes`` that were freed; ``held``: numbers of past states whose files stay because a reader has them open."""

    bytes: int = 0
    held: list[int] = field(default_factory=list)


def sweep(root: Path) -> Swept:
    """Remove the segments, lists, indexes and tables of states that are out of reach and that no reader holds.

    The caller holds the store for writing. What is being made, and belongs to no state yet, is left alone.
    """
    present, known = load_manifest(root), changes(root)
    reach = [change.state for change in within_reach(root)]
    held = [
        change.state for change in known if change.state.state != present.state and is_held(root, change.state.state)
    ]
    swept = Swept()
    past = {state.state for state in reach} | {present.state}
    swept.held = sorted(
        state.state for state in held if state.state not in past or state.index not in (None, present.index)
    )
    contents = [present, *reach, *held]
    segments = {name for state in contents for name in state.segments}
    ever = {name for change in known for name in change.state.segments}
    for path in _folders(root / "segments", SEGMENT_NAME):
        if path.name in ever - segments:
            # the exact-match memory holds the tokens of all segments: 'knnstore suffixes' makes it anew; it goes first,
            # since a sweep that is cut short goes on as long as the segment is there
            swept.bytes += remove_tree(root / "suffixes") + remove_tree(path)
        elif all(path.name in (state.dropped or ()) for state in contents if path.name in state.segments):
            swept.bytes += _remove_keys(path)
    indexes = {state.index for state in (present, *held)}
    for path in _folders(root / "index", DIGEST_NAME):
        if path.name in {change.state.index for change in known} - indexes:
            swept.bytes += remove_tree(path)
        for lists in _folders(path / "lists", SEGMENT_NAME):
            if lists.name in ever - segments or _is_orphan(root, lists, ever):
                swept.bytes += remove_tree(lists)
        for runs in _folders(path / "runs", SEGMENT_NAME):  # of lists that are done
            over = runs.name in {*present.indexed, *(ever - segments)} or _is_orphan(root, runs, ever)
            if path.name == present.index and over:
                swept.bytes += remove_tree(runs)
        if (path / "runs").is_dir() and not any((path / "runs").iterdir()):
            remove_tree(path / "runs")
    tables = {removed_path(root, state.removed) for state in contents if state.removed}
    folder = root / REMOVED
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if path not in tables:
            swept.bytes += path.stat().st_size
            path.unlink(missing_ok=True)
    return swept


def _is_orphan(root: Path, lists: Path, ever: set[str]) -> bool:
    """Whether lists, or runs, are of a segment that was never published and whose making was given up."""
    return lists.name not in ever and not segment_root(root, lists.name).is_dir()


def _remove_keys(segment: Path) -> int:
    """Remove the keys that a segment has in corpus order, and their records before them; the bytes that were freed."""
    if not (segment / "keys").is_dir():
        return 0
    with storage_errors("remove", segment):
        for record in [*segment.glob(f"commits/{KEYS_RECORDS}"), segment / "commits" / f"{LAYOUT_TASK}.json"]:
            record.unlink(missing_ok=True)
    return remove_tree(segment / "keys")


def unfinished(root: Path) -> Iterator[Path]:
    """Folders of segments that belong to no state: begun and not ended."""
    ever = {name for change in changes(root) for name in change.state.segments} | set(load_manifest(root).segments)
    yield from (path for path in _folders(root / "segments", SEGMENT_NAME) if path.name not in ever)


def discard_unpublished(root: Path) -> None:
    """Remove the indexes that no state has ever had, of builds that were given up."""
    for path in unpublished_indexes(root):
        remove_tree(path)


def unpublished_indexes(root: Path) -> list[Path]:
    """The folders of indexes that no state has ever had."""
    ever = {change.state.index for change in changes(root)} | {load_manifest(root).index}
    return [path for path in _folders(root / "index", DIGEST_NAME) if path.name not in ever]


def next_segment(root: Path) -> str:
    """The name of a segment that was never there: a number, which begins with the epoch from the second epoch on."""
    epoch = edit_of(root).epoch or 0
    ever = {name for change in changes(root) for name in change.state.segments} | set(load_manifest(root).segments)
    # a folder without a file is all that a run left that was stopped at once: what begins anew takes it
    begun = {
        path.name for path in _folders(root / "segments", SEGMENT_NAME) if any(f.is_file() for f in path.rglob("*"))
    }
    numbers = [number for of, number in map(_numbers, ever | begun) if of == epoch]
    number = max(numbers, default=-1) + 1
    return f"{epoch:0{_EPOCH_DIGITS}d}{number:04d}" if epoch else f"{number:04d}"


def is_ours(root: Path, name: str) -> bool:
    """Whether this writer may go on with a segment that was begun: nobody of another epoch writes there."""
    return not isinstance(root, ObjectPath) or _numbers(name)[0] == (edit_of(root).epoch or 0)


def _numbers(name: str) -> tuple[int, int]:
    """Epoch and number of a segment's name."""
    if len(name) < _LONGEST_NAME:
        return 0, int(name)
    return int(name[:_EPOCH_DIGITS]), int(name[_EPOCH_DIGITS:])


def remove_tree(path: Path) -> int:
    """Remove a folder, if it is there, for good; the bytes that were in it.

    The mark of a part that is whole goes first, so that a removal that is cut short leaves nothing that is marked done.
    """
    if isinstance(path, ObjectPath):
        return path.remove_below()
    if not path.exists():
        return 0
    size = bytes_below(path)
    with storage_errors("remove", path):
        for mark in list(path.rglob(f"commits/{DONE}.json")):
            mark.unlink(missing_ok=True)
            sync_folder(mark.parent)
    remove_folder(path)
    return size


def sweep_partial(root: Path) -> None:
    """Remove what a killed writer left half-written below a folder: Zarr's partial chunks, files of ours set aside."""
    if isinstance(root, ObjectPath):
        return
    with storage_errors("clean", root):
        for path in root.rglob("*"):
            if path.suffix in (".partial", TEMPORARY_SUFFIX):
                path.unlink(missing_ok=True)


def bytes_below(*paths: Path) -> int:
    """Bytes of all files in the folders."""
    return sum(size for path in paths for _, size in sizes_below(path))


def sizes_below(path: Path) -> Iterator[tuple[Path, int]]:
    """Every file below a folder, with its bytes."""
    if isinstance(path, ObjectPath):
        yield from path.below()
    else:
        yield from ((file, file.stat().st_size) for file in path.rglob("*") if file.is_file())


def state_bytes(root: Path, state: Manifest) -> int:
    """Bytes on disk of a state's segments and lists."""
    folders: Iterable[Path] = [segment_root(root, name) for name in state.segments]
    if state.index is not None:
        folder = index_root(root, state.index)
        folders = [*folders, folder / "quantizer", *(folder / "lists" / name for name in state.indexed)]
    return bytes_below(*folders)


def _folders(folder: Path, name: re.Pattern[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_dir())
