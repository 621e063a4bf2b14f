"""Files that a killed writer left behind, or that were discarded, and that no state of the store needs.

The same command continues them, after verifying them, or the next command removes them. They are therefore no damage.
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
    """What the states of the store at ``root`` need; everything if the manifest is unreadable."""

    root: Path
    present: Manifest | None
    segments: frozenset[str]

    def is_leftover(self, path: Path) -> bool:
        """Return whether no state needs the file."""
        if path.suffix in LEFTOVERS or self.present is None:
            return path.suffix in LEFTOVERS
        inside, present = path.relative_to(self.root).parts, self.present
        unneeded = any(kind.is_leftover(self.root, inside, present, self.segments) for kind in PARTS)
        return unneeded or self._is_unpublished(inside, present)

    def _is_unpublished(self, parts: tuple[str, ...], present: Manifest) -> bool:
        """Return whether a file belongs to a change that was never published."""
        match parts:
            case (folder, name) if folder == LOG and (state := takedown_state(Path(name))) is not None:
                return state > present.state or self._is_of_another_epoch(self.root / LOG / name, state)
            case (folder, name) if folder == LOG and name.partition(".")[0].isdecimal():
                return int(name.partition(".")[0]) > present.state
        return False

    def _is_of_another_epoch(self, takedown: Path, state: int) -> bool:
        """Return whether a file of removed texts was written by a writer that never published that state."""
        try:
            return takedown_path(self.root, load_change(self.root, state).state) != takedown
        except KnnstoreError:  # reported as damage
            return False


def needed(root: Path) -> Needed:
    """Return what the present state of the store at ``root`` and its restorable states need.

    States before a compaction aren't included: their files are being removed, or will be after their last reader.
    """
    try:
        present = load_manifest(root)
    except CorruptStoreError:
        return Needed(root, None, frozenset())
    try:
        states = [present, *(change.state for change in within_reach(changes(root)))]
    except KnnstoreError:  # reported as damage; any segment may then belong to a state
        return Needed(root, present, frozenset(path.name for path in (root / SEGMENTS).glob("*")))
    return Needed(root, present, frozenset(name for state in states for name in state.segments))
