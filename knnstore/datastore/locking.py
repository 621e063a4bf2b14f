"""One writer at a time: an advisory lock that the operating system lets go of when its holder dies."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knnstore.atomic import storage_errors
from knnstore.datastore.contents import require_plain
from knnstore.errors import LockedError

LOCK_FILE = ".lock"


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Hold the store at ``root`` for writing.

    Raises LockedError that names the holder, CorruptStoreError if there are links in the store.
    """
    path = root / LOCK_FILE
    require_plain(root)
    with storage_errors("lock", path):
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{root} is being written by {_holder(path)}: wait for it, or stop it") from None
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}, file)
        file.flush()
        # The file stays: unlinking a locked file would let two writers hold two files of the same name.
        try:
            yield
        finally:
            file.truncate(0)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, OSError):
        return "another process"
