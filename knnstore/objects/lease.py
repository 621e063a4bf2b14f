"""The lock of a writer in object storage: an object that one can create, and that its holder renews.

It is renewed every few seconds by a conditional write. One that isn't renewed for a while has no holder any more, and
another writer takes it over, by a conditional write too: of two that try, one fails. A holder of this machine that is
dead is seen at once.

A holder that is taken over may only have been frozen, and wake up with a request in its hands. So each takeover begins
a new *epoch*, a number that the lock and the manifest carry: writers of an earlier epoch can't publish, and what a
writer makes has its epoch in its name, so that nobody else writes there.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from knnstore.errors import KnnstoreError, LockedError, ResourceError, UsageError
from knnstore.objects.guard import Guard
from knnstore.objects.path import ObjectPath, Version, replace_only
from knnstore.objects.service import ConditionError

RENEWED_SECONDS = 5.0
LAPSED_SECONDS = 30.0
_LOOK_SECONDS = 1.0
_NEVER = Version('"00000000000000000000000000000000"', "1")


class Lease:
    """Holds the lock at ``path`` from when it is made until ``release``. ``holder``: who that is, for people.

    ``epoch``: of this writer; ``taken_over``: whether the holder before it never released the lock. ``say`` is called
    if there is something to wait for. Raises LockedError if another writer renews the lock, UsageError where the
    service has no conditional writes.
    """

    def __init__(self, path: ObjectPath, holder: dict[str, Any], say: Callable[[str], None]) -> None:
        self._path = path
        self._told = {**holder, "machine": _machine(), "token": secrets.token_hex(16)}
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
        """Let the next writer have it. It keeps the epoch."""
        self._guard.end()
        self._over.set()
        self._thread.join()
        if not self._guard.lost:
            data = json.dumps({"epoch": self.epoch}).encode() if self.epoch else b""
            with suppress(KnnstoreError, ConditionError, FileNotFoundError):
                replace_only(self._path, data, self._version)

    def require(self) -> None:
        """Ask the service. Raises LockedError if another writer has taken the lock over."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            data = b""
        if parse_holder(data).get("token") != self._told["token"]:
            self._guard.lose()
        self._guard.check()

    def begin_epoch(self, epoch: int) -> None:
        """Make ``epoch`` that of this writer. Raises LockedError if another writer has taken the lock over."""
        self.epoch = epoch
        try:
            self._renew_once()
        except (ConditionError, FileNotFoundError):
            self._guard.lose()
        self._guard.check()

    def _body(self) -> bytes:
        self._beat += 1
        epoch = {"epoch": self.epoch} if self.epoch else {}
        return json.dumps({**self._told, **epoch, "beat": self._beat}).encode()

    def _take(self, say: Callable[[str], None]) -> Version:
        try:
            return replace_only(self._path, self._body(), None)
        except ConditionError:
            return self._take_over(say)

    def _take_over(self, say: Callable[[str], None]) -> Version:
        """Wait until the lock is released, or its holder shows no sign of life any more, and take it."""
        version, found = self._look()
        beat, since, told = found.get("beat"), time.monotonic(), False
        while is_held(found) and not _is_dead(found):
            if found.get("beat") != beat:
                raise LockedError(f"{self._path.parent} is being written by {describe_holder(found)}: wait, or stop it")
            if time.monotonic() - since > LAPSED_SECONDS:
                break
            if not told:
                say(f"waiting   {describe_holder(found)} held the store and may be dead: {LAPSED_SECONDS:.0f} s to see")
                told = True
            time.sleep(_LOOK_SECONDS)
            version, found = self._look()
        self.taken_over = is_held(found)
        self.epoch = _epoch_of(found) + self.taken_over
        try:
            return replace_only(self._path, self._body(), version)
        except ConditionError:
            raise LockedError(f"another process has just begun to write {self._path.parent}: wait for it") from None

    def _look(self) -> tuple[Version, dict[str, Any]]:
        """The lock's version and what it says."""
        version, data = self._path.read_version()
        return version, parse_holder(data)

    def _require_conditions(self) -> None:
        """Raise UsageError unless the service refuses a write whose condition doesn't hold."""
        for condition in (None, _NEVER):
            with suppress(ConditionError):
                self._path.put(self._body(), only=condition)
                self._path.unlink(missing_ok=True)
                raise UsageError(
                    f"the service of {self._path.parent} doesn't heed conditional writes (If-None-Match and If-Match), "
                    "so two writers couldn't be kept apart: use one that does, or write the store to a disk and copy "
                    "it there; reading it there works"
                )

    def _renew(self) -> None:
        while not self._over.wait(RENEWED_SECONDS):
            try:
                self._renew_once()
            except ResourceError:
                continue  # the service may be back in time, and else another writer takes over
            except (ConditionError, FileNotFoundError, KnnstoreError):
                self._guard.lose()
                return

    def _renew_once(self) -> None:
        with self._renewing:
            self._version = replace_only(self._path, self._body(), self._version)


def parse_holder(data: bytes) -> dict[str, Any]:
    """What a lock says."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def is_held(found: dict[str, Any]) -> bool:
    """Whether a lock that says this has a holder: one that was released says at most its epoch."""
    return bool(found.keys() - {"epoch"})


def describe_holder(found: dict[str, Any]) -> str:
    """A holder, for people."""
    if not {"pid", "host", "since"} <= found.keys():
        return "another process"
    return f"process {found['pid']} on {found['host']} since {found['since']}"


def _epoch_of(found: dict[str, Any]) -> int:
    epoch = found.get("epoch", 0)
    return epoch if isinstance(epoch, int) and epoch > 0 else 0


def _machine() -> str:
    """A name of this boot of this machine, and of the container in it, that no other has; empty if it can't be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - it is a link to no file
    except OSError:
        return ""


def _is_dead(found: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that isn't there any more."""
    if not _machine() or found.get("machine") != _machine() or not isinstance(found.get("pid"), int):
        return False
    try:
        os.kill(found["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
