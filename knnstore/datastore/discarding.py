"""``overwrite``: discard the contents of a store. Open readers keep their state."""

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
    """Make the folder a store unless it is one. ``overwrite``: discard what the store holds.

    Raises UsageError, naming ``parameter``, for a folder that holds anything else.
    """
    others = [entry.name for entry in edit.root.iterdir() if entry.name != LOCK_FILE]
    is_store = (edit.root / MANIFEST_FILE).is_file()
    if not is_store and not set(others) <= {"segments"}:
        raise UsageError(f"{edit.root} is no store but isn't empty: choose another name with {option(parameter)}")
    if not is_store:
        edit.create(model, key)
    if overwrite:
        discard_contents(edit, model, key)


def other_store(parameter: str = "store") -> str:
    """Return the next step, for an error message, when a store holds something else."""
    return f"choose another {option(parameter)}, or discard it with {option('overwrite', True)}"


def discard_contents(edit: Edit, model: ModelIdentity, key: KeyRecipe) -> None:
    """Empty the store.

    An empty state is published first, in one atomic step, so that no reader ever sees a partial store. Then the files
    of earlier states are removed, except those that a reader has open. If there are no readers, no history is kept.
    """
    try:
        if edit.state.segments or (edit.state.model, edit.state.key) != (model, key):
            edit.publish(empty_state(model, key), OVERWRITE, "discard what the store held")
        held = bool(edit.sweep().held)
    except (CorruptStoreError, MismatchError):  # an unreadable store
        held = False
    if held or edit.files.leases:
        _discard_leftovers(edit, model, key)
    else:
        _clear(edit.root, keep={MANIFEST_FILE, LOCK_FILE})
        edit.create(model, key)


def _discard_leftovers(edit: Edit, model: ModelIdentity, key: KeyRecipe) -> None:
    """Remove what belongs to no state: unfinished parts, and files derived from the present state."""
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
