"""Remove files that no state needs any more: at once, or after the last reader of their state has closed it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from knnstore.datastore.commits import DONE
from knnstore.datastore.layout import INDEX, SEGMENTS
from knnstore.datastore.manifest import DIGEST_NAME, SEGMENT_NAME, Manifest
from knnstore.datastore.parts import PARTS, PartKind, States, folders
from knnstore.datastore.removed import FOLDER as REMOVED
from knnstore.datastore.removed import removed_path
from knnstore.diskspace import bytes_below
from knnstore.files import files_of, storage_errors

_EPOCH_DIGITS = 5
_LONGEST_NAME = 9


@dataclass(slots=True)
class Swept:
    """``bytes`` freed, and ``held``: the numbers of past states whose files stay because a reader has them open."""

    bytes: int = 0
    held: list[int] = field(default_factory=list)


def sweep(root: Path, given_up: Collection[str] = ()) -> Swept:
    """Remove the segments, lists, indexes and tables of states that can't be restored and that no reader holds.

    The caller holds the store for writing. Unfinished parts, which belong to no state yet, stay unless they are
    ``given_up``: segments with a scratch folder of that name, or indexes (``INDEX``).

    ``PARTS`` is in the order of removal: whether a part is over may depend on a part that comes later and must still
    exist, such as the memories on the segments' folders. An interrupted sweep thus continues where it stopped.
    """
    for scratch in sorted(set(given_up) - {INDEX}):
        discard_begun(root, scratch)
    if INDEX in given_up:
        discard_unpublished(root)
    states, size = States(root), 0
    for kind in PARTS:
        for path, names in kind.folders(root):
            if kind.is_over(states, *names):
                size += _remove_part(kind, path)
    in_reach = {state.state for state in (states.present, *states.reach)}
    held = [s.state for s in states.held if s.state not in in_reach or s.index not in (None, states.present.index)]
    return Swept(size + _sweep_removed(states), sorted(held))


def _remove_part(kind: PartKind, part: Path) -> int:
    """Remove a part; return the bytes freed, 0 for temporary parts."""
    if not part.is_dir():
        return 0
    with storage_errors("remove", part):
        for record in [record for pattern in kind.records for record in part.parent.glob(pattern)]:
            record.unlink(missing_ok=True)
    size = remove_tree(part)
    return 0 if kind.temporary else size


def _sweep_removed(states: States) -> int:
    """Remove the tables of removed documents that no state needs; return their bytes."""
    size, folder = 0, states.root / REMOVED
    needed = {removed_path(states.root, state.removed) for state in states.needed if state.removed}
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if path not in needed:
            size += path.stat().st_size
            path.unlink(missing_ok=True)
    return size


def unfinished(root: Path) -> Iterator[Path]:
    """Yield the folders of unfinished segments, which belong to no state."""
    published = States(root).published
    yield from (path for path in folders(root / SEGMENTS, SEGMENT_NAME) if path.name not in published)


def discard_begun(root: Path, scratch: str, but: Path | None = None) -> None:
    """Remove unfinished segments that have a scratch folder of that name, and such folders in finished segments.

    ``but``: the segment that will be continued.
    """
    for path in unfinished(root):
        if (path / scratch).exists() and path != but:
            remove_tree(path)
    for path in sorted((root / SEGMENTS).glob(f"*/{scratch}")):
        if path.parent != but:
            remove_tree(path)


def discard_unpublished(root: Path) -> None:
    """Remove the indexes of discarded builds, which no state has ever had."""
    for path in unpublished_indexes(root):
        remove_tree(path)


def unpublished_indexes(root: Path) -> list[Path]:
    """Return the folders of indexes that no state has ever had."""
    published = States(root).indexes
    return [path for path in folders(root / INDEX, DIGEST_NAME) if path.name not in published]


def next_segment(root: Path, epoch: int | None) -> str:
    """Return an unused name for a segment: a number, which starts with the epoch from the second epoch on."""
    epoch = epoch or 0
    # a folder without files, left by a run that stopped at once, may be used again
    used = {path.name for path in folders(root / SEGMENTS, SEGMENT_NAME) if any(f.is_file() for f in path.rglob("*"))}
    numbers = [number for of, number in map(_numbers, States(root).published | used) if of == epoch]
    number = max(numbers, default=-1) + 1
    return f"{epoch:0{_EPOCH_DIGITS}d}{number:04d}" if epoch else f"{number:04d}"


def is_of_epoch(segment: Path, epoch: int | None) -> bool:
    """Return whether a writer of that epoch may continue a segment, because no writer of another epoch writes there."""
    return not files_of(segment).leases or _numbers(segment.name)[0] == (epoch or 0)


def _numbers(name: str) -> tuple[int, int]:
    """Return the epoch and the number in a segment's name."""
    if len(name) < _LONGEST_NAME:
        return 0, int(name)
    return int(name[:_EPOCH_DIGITS]), int(name[_EPOCH_DIGITS:])


def remove_tree(path: Path) -> int:
    """Remove a folder, if it exists, durably; return the bytes of its files.

    The record that marks a part as complete is removed first, so that an interrupted removal leaves no part marked so.
    """
    return files_of(path).remove_below(path, first=f"commits/{DONE}.json")


def state_bytes(root: Path, state: Manifest) -> int:
    """Return the bytes on disk of a state's segments and lists."""
    return bytes_below(*(path for kind in PARTS for path in kind.whole(root, state)))
