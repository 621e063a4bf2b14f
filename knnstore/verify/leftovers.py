"""What a killed writer left behind, or gave up, and that no state of the store needs.

The same command goes on with it or the next one removes it, and whoever goes on verifies it first. So nothing of it
is damage.
"""

from dataclasses import dataclass
from pathlib import Path

from knnstore.datastore.contents import LEFTOVERS
from knnstore.datastore.history import FOLDER as LOG
from knnstore.datastore.history import FORGETS, load_change, record_path, takedown_path, takedown_state
from knnstore.datastore.manifest import DIGEST_NAME, SEGMENT_NAME, Manifest, load_manifest
from knnstore.errors import CorruptStoreError, KnnstoreError

SCRATCH = {"parts", "append", "copy"}
"""Folders of a segment that are needed only while it is being made."""


@dataclass(frozen=True, slots=True)
class Needed:
    """What the states of the store at ``root`` need; with an unreadable manifest, as much as there is."""

    root: Path
    present: Manifest | None
    segments: frozenset[str]

    def is_leftover(self, path: Path) -> bool:
        """Whether no state needs the file."""
        return path.suffix in LEFTOVERS or (
            self.present is not None and self._is_unpublished(path.relative_to(self.root).parts, self.present)
        )

    def _is_unpublished(self, parts: tuple[str, ...], present: Manifest) -> bool:
        match parts:
            case ("segments", name, inside, *_) if SEGMENT_NAME.fullmatch(name):
                given_up = inside == "keys" and name in (present.dropped or ())
                return name not in self.segments or inside in SCRATCH or given_up
            case ("index", name, *inside) if DIGEST_NAME.fullmatch(name):
                runs, lists = inside[:1] == ["runs"], inside[:1] == ["lists"] and len(inside) > 2
                return name != present.index or runs or (lists and inside[1] not in present.indexed)
            case ("suffixes", name, *_) if DIGEST_NAME.fullmatch(name):
                return not (self.root / "suffixes" / name / "commits" / "done.json").is_file()
            case (folder, name) if folder == LOG and (state := takedown_state(Path(name))) is not None:
                return state > present.state or self._is_of_another_epoch(self.root / LOG / name, state)
            case (folder, name) if folder == LOG and name.partition(".")[0].isdecimal():
                return int(name.partition(".")[0]) > present.state
        return False

    def _is_of_another_epoch(self, takedown: Path, state: int) -> bool:
        """Whether a file of removed texts was written by a writer that didn't come to publish that state."""
        try:
            return takedown_path(self.root, load_change(self.root, state).state) != takedown
        except KnnstoreError:  # reported as damage
            return False


def needed(root: Path) -> Needed:
    """What the present state of the store at ``root`` needs, and those that can be returned to.

    What was there before a compaction is being removed, or goes when the last reader has ended.
    """
    try:
        present = load_manifest(root)
    except CorruptStoreError:
        return Needed(root, None, frozenset())
    segments: set[str] = set()
    for number in range(1, present.state + 1):
        if not record_path(root, number).is_file():
            continue
        try:
            change = load_change(root, number)
        except KnnstoreError:  # told of as damage: then any segment may be one of its state's
            return Needed(root, present, frozenset(path.name for path in (root / "segments").glob("*")))
        segments = {*change.state.segments, *(() if change.kind in FORGETS else segments)}
    return Needed(root, present, frozenset(segments.union(present.segments)))
