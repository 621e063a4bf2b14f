"""One writer at a time: a lock of the system, which goes with its holder, or a lease that lapses."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from knnstore.errors import LockedError
from knnstore.files import WriteLock, files_of

LOCK_FILE = ".lock"


@contextmanager
def writing(root: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[WriteLock]:
    """Hold the lock of the folder at ``root``.

    ``say`` is called if there is something to wait for. Raises LockedError that names the holder, CorruptStoreError if
    there are links in the folder.
    """
    files = files_of(root)
    files.require_plain(root)
    this_process = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}
    with files.lock(root / LOCK_FILE, this_process, say) as lock:
        yield lock


def holder(root: Path) -> str | None:
    """Describe who holds the store at ``root`` for writing, for people; None if nobody does. Never takes the lock."""
    return files_of(root).holder(root / LOCK_FILE)


def require_free(root: Path) -> None:
    """Raise LockedError if somebody is writing now: for a writer who has much to do before it writes.

    Only time tells a lease from that of somebody who died, and whoever takes it waits for that.
    """
    if not files_of(root).leases and (writer := holder(root)):
        raise LockedError(f"{root} is being written by {writer}: wait for it, or stop it")


def read_holder(root: Path) -> str:
    """Return what identifies the holder of the lock of the store at ``root``; empty if there is none."""
    return files_of(root).token(root / LOCK_FILE)
