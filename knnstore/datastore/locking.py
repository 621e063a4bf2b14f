"""One writer at a time: a lock of the operating system, which ends with its holder, or a lease that expires."""

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

    ``say`` is called with a message if it has to wait. Raises LockedError, naming the holder, if it is locked;
    CorruptStoreError if there are links in the folder.
    """
    files = files_of(root)
    files.require_plain(root)
    this_process = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}
    with files.lock(root / LOCK_FILE, this_process, say) as lock:
        yield lock


def holder(root: Path) -> str | None:
    """Return a description of who holds the store at ``root`` for writing, or None. Never takes the lock."""
    return files_of(root).holder(root / LOCK_FILE)


def require_free(root: Path) -> None:
    """Raise LockedError if another process is writing now: for writers that do much work before they write.

    With leases it never raises: only time shows whether a holder is dead, and ``writing`` waits for that.
    """
    if not files_of(root).leases and (writer := holder(root)):
        raise LockedError(f"{root} is being written by {writer}: wait for it, or stop it")


def read_holder(root: Path) -> str:
    """Return a token that identifies the holder of the store's lock; empty if there is none."""
    return files_of(root).token(root / LOCK_FILE)
