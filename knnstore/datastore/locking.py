"""One writer at a time: an advisory lock that the operating system lets go of when its holder dies.

In object storage the lock is a lease, which lapses some seconds after its holder died.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knnstore.atomic import storage_errors
from knnstore.datastore.contents import require_plain
from knnstore.errors import LockedError
from knnstore.objects.lease import Lease, describe_holder, is_held, parse_holder
from knnstore.objects.path import ObjectPath

LOCK_FILE = ".lock"


@contextmanager
def writing(root: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[Lease | None]:
    """Hold the lock of the folder at ``root``, in object storage by the lease that is given.

    ``say`` is called if there is something to wait for. Raises LockedError that names the holder, CorruptStoreError if
    there are links in the folder.
    """
    path = root / LOCK_FILE
    if isinstance(path, ObjectPath):
        lease = Lease(path, _this_process(), say)
        try:
            yield lease
        finally:
            lease.release()
        return
    require_plain(root)
    with storage_errors("lock", path):
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _locked(root, _holder(path)) from None
        file.truncate(0)
        json.dump(_this_process(), file)
        file.flush()
        os.fsync(file.fileno())  # on a network file system, other machines look for it
        # The file stays: unlinking a locked file would let two writers hold two files of the same name.
        try:
            yield None
        finally:
            file.truncate(0)


def holder(root: Path) -> str | None:
    """Who holds the store at ``root`` for writing, for people; None if nobody does. Takes nothing away from anyone."""
    path = root / LOCK_FILE
    if isinstance(path, ObjectPath):
        found = _lease_holder(path)
        return describe_holder(found) if is_held(found) else None
    try:
        if not path.stat().st_size:  # the usual case needs no probe that could meet a writer who is just starting
            return None
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(path)
    except OSError:  # no lock file, or one that may not be read: nobody that we know of
        return None
    return None


def require_free(root: Path) -> None:
    """Raise LockedError if somebody is writing now: for a writer who has much to do before it writes.

    In object storage only time tells a lease from that of somebody who died, and whoever takes it will wait for that.
    """
    if not isinstance(root, ObjectPath) and (told := holder(root)):
        raise _locked(root, told)


def _locked(root: Path, told: str) -> LockedError:
    return LockedError(f"{root} is being written by {told}: wait for it, or stop it")


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}


def _lease_holder(path: ObjectPath) -> dict[str, Any]:
    try:
        return parse_holder(path.read_bytes())
    except FileNotFoundError:
        return {}


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, OSError):
        return "another process"


def read_holder(root: Path) -> str:
    """What the lock of the store at ``root`` says of its holder; empty if there is none."""
    path = root / LOCK_FILE
    if isinstance(path, ObjectPath):
        return str(_lease_holder(path).get("token", ""))
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
