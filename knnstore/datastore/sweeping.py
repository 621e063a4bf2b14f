"""What no state needs any more leaves the disk: at once, or when the last reader of its state has gone."""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from knnstore.atomic import remove_folder, storage_errors, sync_folder
from knnstore.datastore.commits import DONE
from knnstore.datastore.history import changes, is_held, within_reach
from knnstore.datastore.manifest import DIGEST_NAME, SEGMENT_NAME, Manifest, load_manifest
from knnstore.datastore.removed import FOLDER as REMOVED
from knnstore.datastore.removed import removed_path
from knnstore.datastore.segment import KEYS_RECORDS, LAYOUT_TASK
from knnstore.datastore.store import index_root, segment_root
from knnstore.objects.path import ObjectPath

INDEX = "index"
_EPOCH_DIGITS = 5
_LONGEST_NAME = 9


@dataclass(slots=True)
class Swept:
    """``bytes`` that were freed; ``held``: numbers of past states whose files stay because a reader has them open."""

    bytes: int = 0
    held: list[int] = field(default_factory=list)


def sweep(root: Path, given_up: Collection[str] = ()) -> Swept:
    """Remove the segments, lists, indexes and tables of states that are out of reach and that no reader holds.

    The caller holds the store for writing. What is being made, and belongs to no state yet, is left alone, unless it is
    ``given_up``: segments with a scratch folder of such a name, or indexes (``INDEX``).
    """
    for scratch in sorted(set(given_up) - {INDEX}):
        discard_begun(root, scratch)
    if INDEX in given_up:
        discard_unpublished(root)
    sweep = _Sweep(root)
    sweep.segments()
    sweep.indexes()
    sweep.tables()
    return Swept(sweep.bytes, sweep.held_out_of_reach())


class _Sweep:
    """One sweep. ``bytes`` that it has freed."""

    def __init__(self, root: Path) -> None:
        self.bytes = 0
        self._root = root
        known = changes(root)
        self._present = load_manifest(root)
        self._reach = [change.state for change in within_reach(root)]
        past = [change.state for change in known if change.state.state != self._present.state]
        self._held = [state for state in past if is_held(root, state.state)]
        self._contents = [self._present, *self._reach, *self._held]
        self._published = {name for change in known for name in change.state.segments}
        self._gone = self._published - {name for state in self._contents for name in state.segments}
        self._indexes = {change.state.index for change in known}

    def segments(self) -> None:
        """Remove segments, and the keys that lie in lists as well."""
        for path in _folders(self._root / "segments", SEGMENT_NAME):
            if path.name in self._gone:
                # the exact-match memory holds the tokens of all segments: 'knnstore suffixes' makes it again; it goes
                # first, since a sweep that is cut short goes on as long as the segment is there
                self._remove(self._root / "suffixes")
                self._remove(path)
            elif path.name in self._published and not self._has_keys(path.name):
                self.bytes += _remove_keys(path)

    def indexes(self) -> None:
        """Remove indexes, and of the others lists and runs."""
        needed, present = {state.index for state in (self._present, *self._held)}, self._present
        for path in _folders(self._root / "index", DIGEST_NAME):
            if path.name in self._indexes - needed:
                self._remove(path)
            for lists in _folders(path / "lists", SEGMENT_NAME):
                if self._is_over(lists.name):
                    self._remove(lists)
            for runs in _folders(path / "runs", SEGMENT_NAME):  # of lists that are done
                if path.name == present.index and (runs.name in present.indexed or self._is_over(runs.name)):
                    remove_tree(runs)
            if (path / "runs").is_dir() and not any((path / "runs").iterdir()):
                self._remove(path / "runs")

    def tables(self) -> None:
        """Remove tables of removed documents."""
        needed = {removed_path(self._root, state.removed) for state in self._contents if state.removed}
        folder = self._root / REMOVED
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if path not in needed:
                self.bytes += path.stat().st_size
                path.unlink(missing_ok=True)

    def held_out_of_reach(self) -> list[int]:
        """Numbers of states whose files stay for their readers alone."""
        numbers, index = {state.state for state in (self._present, *self._reach)}, self._present.index
        return sorted(s.state for s in self._held if s.state not in numbers or s.index not in (None, index))

    def _remove(self, folder: Path) -> None:
        self.bytes += remove_tree(folder)

    def _has_keys(self, segment: str) -> bool:
        """Whether a state needs the keys that a segment has in corpus order."""
        return any(segment not in (state.dropped or ()) for state in self._contents if segment in state.segments)

    def _is_over(self, segment: str) -> bool:
        """Whether lists, or runs, are of a segment that is gone, or of one whose making was given up."""
        begun = segment in self._published or segment_root(self._root, segment).is_dir()
        return segment in self._gone or not begun


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


def discard_begun(root: Path, scratch: str, but: Path | None = None) -> None:
    """Remove the segments that are being made with a scratch folder of that name, and those folders of finished ones.

    ``but``: the segment that is to be gone on with.
    """
    for path in unfinished(root):
        if (path / scratch).exists() and path != but:
            remove_tree(path)
    for path in sorted((root / "segments").glob(f"*/{scratch}")):
        if path.parent != but:
            remove_tree(path)


def discard_unpublished(root: Path) -> None:
    """Remove the indexes that no state has ever had, of builds that were given up."""
    for path in unpublished_indexes(root):
        remove_tree(path)


def unpublished_indexes(root: Path) -> list[Path]:
    """The folders of indexes that no state has ever had."""
    ever = {change.state.index for change in changes(root)} | {load_manifest(root).index}
    return [path for path in _folders(root / "index", DIGEST_NAME) if path.name not in ever]


def next_segment(root: Path, epoch: int | None) -> str:
    """The name of a segment that was never there: a number, which begins with the epoch from the second epoch on."""
    epoch = epoch or 0
    ever = {name for change in changes(root) for name in change.state.segments} | set(load_manifest(root).segments)
    # a folder without a file is all that a run left that was stopped at once: what begins anew takes it
    begun = {
        path.name for path in _folders(root / "segments", SEGMENT_NAME) if any(f.is_file() for f in path.rglob("*"))
    }
    numbers = [number for of, number in map(_numbers, ever | begun) if of == epoch]
    number = max(numbers, default=-1) + 1
    return f"{epoch:0{_EPOCH_DIGITS}d}{number:04d}" if epoch else f"{number:04d}"


def is_of_epoch(segment: Path, epoch: int | None) -> bool:
    """Whether a writer of that epoch may go on with a segment: nobody of another one writes there."""
    return not isinstance(segment, ObjectPath) or _numbers(segment.name)[0] == (epoch or 0)


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
