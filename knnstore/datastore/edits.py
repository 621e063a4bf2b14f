"""One writer's transaction on a store: from the lock, and the state that is found, to the state that is published.

``editing`` takes the lock, removes what a killed writer left half-written, and gives an ``Edit``. When the work ends
well, what no state needs any more leaves the disk.
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
    """Hold the store at ``root`` for writing, and clean up when the work ends well. ``say``: see ``writing``.

    Raises LockedError that names the holder, or that says that another writer has taken the store over in the
    meantime; CorruptStoreError if there are links in the store.
    """
    with writing(root, say) as lock:
        edit = Edit(root, lock)
        edit.files.remove_leftovers(root)
        try:
            yield edit
            edit.clean_up()
        except (KnnstoreError, OSError, ValueError):
            with suppress(ResourceError):  # what went wrong is worth telling only if the store was this writer's
                edit.require()
            raise
        if not edit.published:
            edit.require()


class Edit:
    """What a writer has in its hands while it holds the store at ``root``.

    The manifest's version is taken with the lock, and only that version is ever replaced. ``files``: where the store
    is; ``published``: whether it has made a state.
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
        """The store's present state. Raises StoreNotFoundError where there is no store yet."""
        return load_manifest(self.root)

    @property
    def store(self) -> Datastore:
        """The store in its present state, which isn't held: nobody else can end it."""
        return Datastore(self.root, self.state)

    @property
    def epoch(self) -> int | None:
        """Of what this writer makes; None for the first. On a disk it is that of the store, which stays as it is."""
        return self._lock.epoch or None

    def create(self, model: ModelIdentity, key: KeyRecipe) -> None:
        """Make the store one that holds nothing and has no past."""
        self._save_manifest(empty_state(model, key).in_epoch(self.epoch))

    def publish(self, state: Manifest, kind: str, what: str, **facts: Any) -> Manifest:
        """Make ``state`` the store's next one, in one atomic step; return it with its number.

        Every file that it names is on the device. Raises LockedError if another writer has taken the store over.
        """
        state = replace(state, state=self.state.state + 1).in_epoch(self.epoch)
        make_folder(self.root / FOLDER)
        if TAKEDOWN not in facts:  # one that is there is of a removal that was cut short before it became this state
            with storage_errors("write", self.root / FOLDER):
                takedown_path(self.root, state).unlink(missing_ok=True)
        self.replace_record(record_path(self.root, state.state), new_change(kind, what, facts, state))
        self._save_manifest(state)
        self.published = True
        return state

    def replace_record(self, path: Path, value: object) -> None:
        """Replace a record that isn't part of a published state: of the change to come, or of what was tuned."""
        data = seal_json(to_json(value))
        for _ in range(_ATTEMPTS):
            # what a writer before this one left; another one's, who took this one's place, can't be there yet
            earlier = version_of(path)
            self._require_present()
            with suppress(ConditionError):  # a writer that was replaced has just woken up, or this one has
                self.files.replace_only(path, data, earlier)
                return
        raise _changed(path)

    def give_up(self, *kinds: str) -> None:
        """Have what was begun and belongs to no state removed with the next sweep: see ``sweeping.sweep``."""
        self._given_up.update(kinds)
        self._swept = None

    def sweep(self) -> Swept:
        """Remove what no state needs any more, once for each state."""
        if self._swept is None:
            self._swept = sweep(self.root, self._given_up)
        return self._swept

    def clean_up(self) -> None:
        """Leave nothing behind that isn't needed, as far as the store can be read."""
        self.files.remove_leftovers(self.root)
        with suppress(CorruptStoreError, MismatchError, StoreNotFoundError):
            self.sweep()

    def require(self) -> None:
        """Raise LockedError if another writer has taken the store over."""
        self._lock.require()

    def _save_manifest(self, manifest: Manifest) -> None:
        """Make ``manifest`` the store's, in one atomic step. Raises LockedError if it isn't the one that was there."""
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
        """Agree on the epoch with the manifest, and write it there, so that nobody of an earlier one can publish."""
        path = self.root / MANIFEST_FILE
        for _ in range(_ATTEMPTS):
            self._seen = version_of(path)
            if self._seen is None:
                return
            try:
                self.state = load_manifest(self.root)
            except (CorruptStoreError, MismatchError):
                return  # nobody can publish after a manifest that can't be read
            there = self.state.epoch or 0
            # the lock may have got lost, and then it is the manifest that knows
            epoch = max(self._lock.epoch, there + self._lock.taken_over)
            if epoch != self._lock.epoch:
                self._lock.begin_epoch(epoch)
            if epoch == there:
                return
            with suppress(ConditionError):  # the writer before this one has published something after all
                self.state = self.state.in_epoch(epoch)
                self._seen = self.files.replace_only(path, seal_json(to_json(self.state)), self._seen)
                return
        raise _changed(path)


def empty_state(model: ModelIdentity, key: KeyRecipe) -> Manifest:
    """The state of a store that holds nothing."""
    return Manifest("knnstore", FORMAT_VERSION, model, key, (), None)


def _changed(path: Path) -> LockedError:
    return LockedError(
        f"{path} was changed by another writer, which took this one for dead: what is published is kept; run the same "
        "command again once the other has ended"
    )
