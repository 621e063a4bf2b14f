"""The transaction of one writer on a store: from the lock and the present state to the newly published state.

``editing`` takes the lock, removes the partial files of killed writers, and yields an ``Edit``. When the work succeeds,
files that no state needs any more are removed.

Writers are fenced by epoch: taking the lock over from a writer that seemed dead increases the epoch, which is then
written into the manifest. As every replacement of the manifest requires the version that the writer saw last, a
writer of an earlier epoch that wakes up can't publish any more.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from knnstore.datastore.history import FOLDER, TAKEDOWN, new_change, record_path, takedown_path
from knnstore.datastore.locking import writing
from knnstore.datastore.manifest import FORMAT_VERSION, MANIFEST_FILE, KeyRecipe, Manifest, ModelIdentity, load_manifest
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import Swept, sweep
from knnstore.errors import (
    CorruptStoreError,
    KnnstoreError,
    LockedError,
    MismatchError,
    ResourceError,
    StoreNotFoundError,
)
from knnstore.files import (
    ConditionError,
    Version,
    WriteLock,
    files_of,
    make_folder,
    seal_json,
    storage_errors,
    version_of,
)
from knnstore.records import to_json

_ATTEMPTS = 5


@contextmanager
def editing(root: Path, say: Callable[[str], None] = lambda _: None) -> Iterator["Edit"]:
    """Hold the store at ``root`` for writing, and clean up when the work succeeds. ``say``: see ``writing``.

    Raises LockedError if another writer holds the store, naming it, or has taken it over; CorruptStoreError if there
    are links in the store.
    """
    with writing(root, say) as lock:
        edit = Edit(root, lock)
        edit.files.remove_leftovers(root)
        try:
            yield edit
            edit.clean_up()
        except (KnnstoreError, OSError, ValueError):
            with suppress(ResourceError):  # the loss of the lock explains the error, so it is raised instead
                edit.require()
            raise
        if not edit.published:
            edit.require()


class Edit:
    """The store at ``root`` while a writer holds it.

    The manifest's version is read under the lock, and only that version is ever replaced. ``files``: the file system
    of the store; ``published``: whether this writer has published a state.
    """

    def __init__(self, root: Path, lock: WriteLock) -> None:
        self.root = root
        self.files = files_of(root)
        self.published = False
        self._lock = lock
        self._seen: Version | None = None
        self._swept: Swept | None = None
        self._given_up: set[str] = set()
        self._begin_epoch()

    @cached_property
    def state(self) -> Manifest:
        """Return the store's present state. Raises StoreNotFoundError if there is no store yet."""
        return load_manifest(self.root)

    @property
    def store(self) -> Datastore:
        """Return the store in its present state. It isn't held, because nobody else can replace it."""
        return Datastore(self.root, self.state)

    @property
    def epoch(self) -> int | None:
        """Return the epoch of what this writer publishes; None for the first. On a disk it stays the store's."""
        return self._lock.epoch or None

    def create(self, model: ModelIdentity, key: KeyRecipe) -> None:
        """Create an empty store without history."""
        self._save_manifest(empty_state(model, key).in_epoch(self.epoch))

    def publish(self, state: Manifest, kind: str, what: str, **facts: Any) -> Manifest:
        """Make ``state`` the store's next state in one atomic step; return it with its number.

        Every file that it names must be flushed already. Raises LockedError if another writer has taken the store over.
        """
        state = replace(state, state=self.state.state + 1).in_epoch(self.epoch)
        make_folder(self.root / FOLDER)
        if TAKEDOWN not in facts:  # an existing file is of a removal that was interrupted before it was published
            with storage_errors("write", self.root / FOLDER):
                takedown_path(self.root, state).unlink(missing_ok=True)
        self.replace_record(record_path(self.root, state.state), new_change(kind, what, facts, state))
        self._save_manifest(state)
        self.published = True
        return state

    def replace_record(self, path: Path, value: object) -> None:
        """Replace a record that isn't part of a published state: of the next change, or of the tuned setting."""
        data = seal_json(to_json(value))
        for _ in range(_ATTEMPTS):
            # The version that an earlier writer left. A later writer can't have written one yet: it would first have
            # replaced the manifest, which the next line would notice.
            earlier = version_of(path)
            self._require_present()
            with suppress(ConditionError):  # a replaced writer, maybe this one, has just resumed
                self.files.replace_only(path, data, earlier)
                return
        raise _changed(path)

    def give_up(self, *kinds: str) -> None:
        """Let the next sweep remove unfinished parts that belong to no state; see ``sweeping.sweep``."""
        self._given_up.update(kinds)
        self._swept = None

    def sweep(self) -> Swept:
        """Remove files that no state needs any more, once per state."""
        if self._swept is None:
            self._swept = sweep(self.root, self._given_up)
        return self._swept

    def clean_up(self) -> None:
        """Remove all files that aren't needed, as far as the store can be read."""
        self.files.remove_leftovers(self.root)
        with suppress(CorruptStoreError, MismatchError, StoreNotFoundError):
            self.sweep()

    def require(self) -> None:
        """Raise LockedError if another writer has taken the store over."""
        self._lock.require()

    def _save_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest in one atomic step. Raises LockedError if it isn't the version that was seen last."""
        path = self.root / MANIFEST_FILE
        try:
            self._seen = self.files.replace_only(path, seal_json(to_json(manifest)), self._seen)
        except ConditionError:
            raise _changed(path) from None
        self.state, self._swept = manifest, None

    def _require_present(self) -> None:
        path = self.root / MANIFEST_FILE
        if version_of(path) != self._seen:
            raise _changed(path)

    def _begin_epoch(self) -> None:
        """Agree on the epoch with the manifest and write it there, so that no earlier writer can publish."""
        path = self.root / MANIFEST_FILE
        for _ in range(_ATTEMPTS):
            self._seen = version_of(path)
            if self._seen is None:
                return
            try:
                self.state = load_manifest(self.root)
            except (CorruptStoreError, MismatchError):
                return  # no writer can publish after an unreadable manifest
            stored = self.state.epoch or 0
            # the lock file may have been lost; then only the manifest has the epoch
            epoch = max(self._lock.epoch, stored + self._lock.taken_over)
            if epoch != self._lock.epoch:
                self._lock.begin_epoch(epoch)
            if epoch == stored:
                return
            with suppress(ConditionError):  # the earlier writer has just published
                self.state = self.state.in_epoch(epoch)
                self._seen = self.files.replace_only(path, seal_json(to_json(self.state)), self._seen)
                return
        raise _changed(path)


def empty_state(model: ModelIdentity, key: KeyRecipe) -> Manifest:
    """Return the state of an empty store."""
    return Manifest("knnstore", FORMAT_VERSION, model, key, (), None)


def _changed(path: Path) -> LockedError:
    return LockedError(
        f"{path} was changed by another writer, which took this one for dead: what is published is kept; run the same "
        "command again once the other writer has finished"
    )
