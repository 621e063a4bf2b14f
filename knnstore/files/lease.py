"""The lock of a writer in object storage: an object that only one writer can create and that its holder renews.

It is renewed every few seconds with a conditional write. A lock that isn't renewed for a while no longer has a holder,
and another writer takes it over, also with a conditional write: if two try, one fails. A dead holder on this machine is
detected at once.

A holder whose lock was taken over may only have been frozen, and wake up with a request in flight. Therefore each
takeover begins a new *epoch*, a number in the lock and the manifest: writers of an earlier epoch can't publish, and
everything that a writer makes has its epoch in its name, so that nobody else writes there.
"""

import json
import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from knnstore.errors import KnnstoreError, LockedError, ResourceError, UsageError
from knnstore.files.guard import Guard
from knnstore.files.protocol import ConditionError, Files, Say, Version

RENEWED_SECONDS = 5.0
LAPSED_SECONDS = 30.0
_LOOK_SECONDS = 1.0
_NEVER = Version('"00000000000000000000000000000000"', "1")


class Lease:
    """Holds the lock at ``path`` from construction until ``release``. ``holder`` describes this process, for people.

    ``epoch``: of this writer. ``taken_over``: whether the previous holder never released the lock. ``say`` is called
    with a message if it has to wait. Raises LockedError if another writer renews the lock, and UsageError if the
    service lacks conditional writes.
    """

    def __init__(self, files: Files, path: Path, holder: dict[str, Any], say: Say) -> None:
        self._files = files
        self._path = path
        self._identity = {**holder, "machine": _machine(), "token": secrets.token_hex(16)}
        self._beat = 0
        self.epoch = 0
        self.taken_over = False
        self._renewing = threading.Lock()
        self._version = self._take(say)
        self._require_conditions()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        self._guard = Guard(path.parent, self.require)

    def release(self) -> None:
        """Release the lock, which keeps its epoch."""
        self._guard.end()
        self._over.set()
        self._thread.join()
        if not self._guard.lost:
            data = json.dumps({"epoch": self.epoch}).encode() if self.epoch else b""
            with suppress(KnnstoreError, ConditionError, FileNotFoundError):
                self._files.replace_only(self._path, data, self._version)

    def require(self) -> None:
        """Raise LockedError if another writer has taken over the lock, by asking the service."""
        try:
            data = self._files.read(self._path)
        except FileNotFoundError:
            data = b""
        if parse_holder(data).get("token") != self._identity["token"]:
            self._guard.lose()
        self._guard.check()

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch of this writer. Raises LockedError if another writer has taken over the lock."""
        self.epoch = epoch
        try:
            self._renew_once()
        except (ConditionError, FileNotFoundError):
            self._guard.lose()
        self._guard.check()

    def _body(self) -> bytes:
        self._beat += 1
        epoch = {"epoch": self.epoch} if self.epoch else {}
        return json.dumps({**self._identity, **epoch, "beat": self._beat}).encode()

    def _take(self, say: Say) -> Version:
        try:
            return self._files.replace_only(self._path, self._body(), None)
        except ConditionError:
            return self._take_over(say)

    def _take_over(self, say: Say) -> Version:
        """Wait until the lock is released or its holder no longer responds, and take it."""
        version, record = self._look()
        beat, since, reported = record.get("beat"), time.monotonic(), False
        while is_held(record) and not _is_dead(record):
            if record.get("beat") != beat:
                raise LockedError(f"{self._path.parent} is being written by {describe_holder(record)}: wait or stop it")
            if time.monotonic() - since > LAPSED_SECONDS:
                break
            if not reported:
                holder = describe_holder(record)
                say(f"waiting   {holder} held the store and may be dead: checking for {LAPSED_SECONDS:.0f} s")
                reported = True
            time.sleep(_LOOK_SECONDS)
            version, record = self._look()
        self.taken_over = is_held(record)
        self.epoch = _epoch_of(record) + self.taken_over
        try:
            return self._files.replace_only(self._path, self._body(), version)
        except ConditionError:
            raise LockedError(
                f"another process has just begun to write {self._path.parent}: wait until it has finished"
            ) from None

    def _look(self) -> tuple[Version, dict[str, Any]]:
        """Return the version of the lock and its record."""
        version, data = self._files.read_version(self._path)
        return version, parse_holder(data)

    def _require_conditions(self) -> None:
        """Raise UsageError unless the service refuses a write whose condition doesn't hold."""
        for condition in (None, _NEVER):
            with suppress(ConditionError):
                self._files.write(self._path, self._body(), only=condition)
                self._path.unlink(missing_ok=True)
                raise UsageError(
                    f"the service of {self._path.parent} ignores conditional writes (If-None-Match and If-Match), "
                    "so two writers couldn't be kept apart: use another service, or write the store to a disk and "
                    "copy it there; reading from this service works"
                )

    def _renew(self) -> None:
        while not self._over.wait(RENEWED_SECONDS):
            try:
                self._renew_once()
            except ResourceError:
                continue  # the service may return in time; otherwise another writer takes over
            except (ConditionError, FileNotFoundError, KnnstoreError):
                self._guard.lose()
                return

    def _renew_once(self) -> None:
        with self._renewing:
            self._version = self._files.replace_only(self._path, self._body(), self._version)


def parse_holder(data: bytes) -> dict[str, Any]:
    """Return the record in a lock."""
    try:
        record = json.loads(data)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def is_held(record: dict[str, Any]) -> bool:
    """Return whether the lock has a holder: a released lock records at most its epoch."""
    return bool(record.keys() - {"epoch"})


def describe_holder(record: dict[str, Any]) -> str:
    """Describe a holder for people."""
    if not {"pid", "host", "since"} <= record.keys():
        return "another process"
    return f"process {record['pid']} on {record['host']} since {record['since']}"


def _epoch_of(record: dict[str, Any]) -> int:
    epoch = record.get("epoch", 0)
    return epoch if isinstance(epoch, int) and epoch > 0 else 0


def _machine() -> str:
    """Return a unique name of this boot of this machine and of its container; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - a link without a target file
    except OSError:
        return ""


def _is_dead(record: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that no longer exists."""
    if not _machine() or record.get("machine") != _machine() or not isinstance(record.get("pid"), int):
        return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
