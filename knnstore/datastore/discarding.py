"""``overwrite``: what a store holds is discarded, and who reads it keeps what is open."""

from pathlib import Path

from knnstore.datastore.edits import Edit, empty_state
from knnstore.datastore.history import OVERWRITE
from knnstore.datastore.locking import LOCK_FILE
from knnstore.datastore.manifest import MANIFEST_FILE, KeyRecipe, ModelIdentity
from knnstore.datastore.sweeping import discard_unpublished, remove_tree, unfinished
from knnstore.errors import CorruptStoreError, MismatchError, UsageError
from knnstore.files import storage_errors
from knnstore.wording import option

_OF_STATES = {"index", "log", "removed", "segments", MANIFEST_FILE, LOCK_FILE}


def open_store(edit: Edit, model: ModelIdentity, key: KeyRecipe, *, parameter: str, overwrite: bool) -> None:
    """Make the folder a store unless it is one; ``overwrite``: one that holds nothing.

    Raises UsageError for a folder that holds anything else, which names ``parameter``.
    """
    others = [entry.name for entry in edit.root.iterdir() if entry.name != LOCK_FILE]
    begun = (edit.root / MANIFEST_FILE).is_file()
    if not begun and not set(others) <= {"segments"}:
        raise UsageError(f"{edit.root} is no store but isn't empty: choose another name with {option(parameter)}")
    if not begun:
        edit.create(model, key)
    if overwrite:
        discard_contents(edit, model, key)


def other_store(parameter: str = "store") -> str:
    """Return what to do about a store that holds something else."""
    return f"choose another {option(parameter)}, or discard it with {option('overwrite', True)}"


def discard_contents(edit: Edit, model: ModelIdentity, key: KeyRecipe) -> None:
    """Make the store one that holds nothing.

    First in a state of its own, in one atomic step, so that no reader ever sees half of a store; then what belongs to
    earlier states goes, but for what a reader has open. In a folder that nobody reads nothing is left of the past.
    """
    try:
        if edit.state.segments or (edit.state.model, edit.state.key) != (model, key):
            edit.publish(empty_state(model, key), OVERWRITE, "discard what the store held")
        held = bool(edit.sweep().held)
    except (CorruptStoreError, MismatchError):  # a store that nobody can read
        held = False
    if held or edit.files.leases:
        _discard_leftovers(edit, model, key)
    else:
        _clear(edit.root, keep={MANIFEST_FILE, LOCK_FILE})
        edit.create(model, key)


def _discard_leftovers(edit: Edit, model: ModelIdentity, key: KeyRecipe) -> None:
    """Remove what belongs to no state at all: what was begun, and what was derived from the present state."""
    try:
        for path in list(unfinished(edit.root)):
            remove_tree(path)
        discard_unpublished(edit.root)
        _clear(edit.root, keep=_OF_STATES)
    except (CorruptStoreError, MismatchError):
        edit.create(model, key)
        _clear(edit.root, keep={MANIFEST_FILE, LOCK_FILE})


def _clear(root: Path, keep: set[str]) -> None:
    with storage_errors("clear", root):
        for entry in root.iterdir():
            if entry.name in keep:
                continue
            if entry.is_dir():
                remove_tree(entry)
            else:
                entry.unlink(missing_ok=True)
