"""What a writer has in its hands while it holds a store: the state that its next one follows, and its epoch."""

from contextlib import suppress
from pathlib import Path

from knnstore.atomic import seal_json, write_json
from knnstore.datastore.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    KeyRecipe,
    Manifest,
    ModelIdentity,
    load_manifest,
)
from knnstore.errors import CorruptStoreError, KnnstoreError, LockedError, MismatchError
from knnstore.objects.lease import Lease
from knnstore.objects.path import ObjectPath, Version, replace_only, version_of
from knnstore.objects.service import ConditionError
from knnstore.records import to_json

_ATTEMPTS = 5
_edits: dict[str, "Edit"] = {}


class Edit:
    """One writer's hold on the store at ``root``, from ``begin`` until ``end``.

    In object storage the manifest's version is taken with the lease, and only that version is ever replaced.
    """

    def __init__(self, root: Path, lease: Lease | None) -> None:
        self.root = root
        self.published = False
        self._lease = lease
        self._seen: Version | None = None
        if lease is not None:
            self._begin_epoch(lease)
        _edits[str(root)] = self

    @property
    def epoch(self) -> int | None:
        """Of what this writer makes; None for the first. In a folder it is that of the store, which stays as it is."""
        if self._lease is not None:
            return self._lease.epoch or None
        try:
            return load_manifest(self.root).epoch
        except KnnstoreError:
            return None

    def end(self) -> None:
        """Let go of the store."""
        _edits.pop(str(self.root), None)

    def require(self) -> None:
        """Raise LockedError if another writer has taken the store over."""
        if self._lease is not None:
            self._lease.require()

    def save_manifest(self, manifest: Manifest) -> None:
        """Make ``manifest`` the store's, in one atomic step. Raises LockedError if it isn't the one that was there."""
        path = self.root / MANIFEST_FILE
        if not isinstance(path, ObjectPath):
            write_json(path, to_json(manifest))
            return
        self._seen = replace_seen(path, seal_json(to_json(manifest)), self._seen)

    def replace_record(self, path: Path, value: object) -> None:
        """Replace a record that isn't part of a published state: of the change to come, or of what was tuned."""
        data = to_json(value)
        if not isinstance(path, ObjectPath):
            write_json(path, data)
            return
        for _ in range(_ATTEMPTS):
            # what a writer before this one left; another one's, who took this one's place, can't be there yet
            earlier = version_of(path)
            self._require_present()
            with suppress(ConditionError):  # a writer that was replaced has just woken up, or this one has
                replace_only(path, seal_json(data), earlier)
                return
        raise _changed(path)

    def _require_present(self) -> None:
        path = self.root / MANIFEST_FILE
        if version_of(path) != self._seen:
            raise _changed(path)

    def _begin_epoch(self, lease: Lease) -> None:
        """Agree on the epoch with the manifest, and write it there, so that nobody of an earlier one can publish."""
        path = self.root / MANIFEST_FILE
        for _ in range(_ATTEMPTS):
            self._seen = version_of(path)
            if self._seen is None:
                return
            try:
                manifest = load_manifest(self.root)
            except (CorruptStoreError, MismatchError):
                return  # nobody can publish after a manifest that can't be read
            there = manifest.epoch or 0
            # the lock may have got lost, and then it is the manifest that knows
            epoch = max(lease.epoch, there + lease.taken_over)
            if epoch != lease.epoch:
                lease.begin_epoch(epoch)
            if epoch == there:
                return
            with suppress(ConditionError):  # the writer before this one has published something after all
                data = seal_json(to_json(manifest.in_epoch(epoch)))
                self._seen = replace_only(ObjectPath(path), data, self._seen)
                return
        raise _changed(path)


def create_store(root: Path, model: ModelIdentity, key: KeyRecipe) -> None:
    """Write the first manifest of the store at ``root``, which holds nothing yet."""
    edit = edit_of(root)
    edit.save_manifest(empty_state(model, key).in_epoch(edit.epoch))


def empty_state(model: ModelIdentity, key: KeyRecipe) -> Manifest:
    """The state of a store that holds nothing."""
    return Manifest("knnstore", FORMAT_VERSION, model, key, (), None)


def edit_of(root: Path) -> Edit:
    """This process' hold on the store at ``root``; where nobody takes a lock, as for a temporary store, a new one."""
    if edit := _edits.get(str(root)):
        return edit
    if isinstance(root, ObjectPath):
        raise LockedError(f"{root} isn't held for writing")
    edit = Edit(root, None)
    edit.end()
    return edit


def replace_seen(path: ObjectPath, data: bytes, seen: Version | None) -> Version:
    """``replace_only`` with a sentence. Raises LockedError if the object isn't the version ``seen``."""
    try:
        return replace_only(path, data, seen)
    except ConditionError:
        raise _changed(path) from None


def _changed(path: Path) -> LockedError:
    return LockedError(
        f"{path} was changed by another writer, which took this one for dead: what is published is kept; run the same "
        "command again once the other has ended"
    )
