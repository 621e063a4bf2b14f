"""What a killed writer left behind, or gave up, and that no state of the store needs.

The same command goes on with it or the next one removes it, and whoever goes on verifies it first. So nothing of it
is damage.
"""

from dataclasses import dataclass
from pathlib import Path

from knnstore.datastore.history import FOLDER as LOG
from knnstore.datastore.history import changes, load_change, takedown_path, takedown_state, within_reach
from knnstore.datastore.layout import SEGMENTS
from knnstore.datastore.manifest import Manifest, load_manifest
from knnstore.datastore.parts import PARTS
from knnstore.errors import CorruptStoreError, KnnstoreError
from knnstore.files import LEFTOVERS


@dataclass(frozen=True, slots=True)
class Needed:
    """What the states of the store at ``root`` need; with an unreadable manifest, as much as there is."""

    root: Path
    present: Manifest | None
    segments: frozenset[str]

    def is_leftover(self, path: Path) -> bool:
        """Whether no state needs the file."""
        if path.suffix in LEFTOVERS or self.present is None:
            return path.suffix in LEFTOVERS
        inside, present = path.relative_to(self.root).parts, self.present
        unneeded = any(kind.is_leftover(self.root, inside, present, self.segments) for kind in PARTS)
        return unneeded or self._is_unpublished(inside, present)

    def _is_unpublished(self, parts: tuple[str, ...], present: Manifest) -> bool:
        """Whether a file is of a change that didn't become a state."""
        match parts:
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
    try:
        states = [present, *(change.state for change in within_reach(changes(root)))]
    except KnnstoreError:  # reported as damage: then any segment may be one of its state's
        return Needed(root, present, frozenset(path.name for path in (root / SEGMENTS).glob("*")))
    return Needed(root, present, frozenset(name for state in states for name in state.segments))
