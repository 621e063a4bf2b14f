"""The states of a store: each change replaces the manifest in one atomic step and has a record of who, when and what.

::

    log/000003.json       Change: the state that it made, and who, when, what
    log/000003.parquet    the SHA-256 of the texts that it removed, if it is a removal; from the second epoch on with
                          the epoch's number, 000003-1.parquet

The record is written before the manifest is replaced, so an interrupted change has no effect. While a reader reads a
state, it holds a shared lock on the state's record; the files of a past state are removed only once no reader holds
it. Only the log contains times and user names.
"""

import getpass
import os
import re
import time
from calendar import timegm
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from knnstore.datastore.manifest import Manifest, load_manifest
from knnstore.errors import CorruptStoreError, UsageError
from knnstore.files import files_of, load_json
from knnstore.records import from_json
from knnstore.wording import command

FOLDER = "log"
TAKEDOWN = "takedown"
"""Key in a change's facts: the SHA-256 of its file of removed texts."""
OVERWRITE = "overwrite"
"""The kind of change that discards all contents of the store."""
FORGETS = ("compact", "merge", "subset", "drop-keys", OVERWRITE)
"""Changes that can't be undone: earlier states are gone."""
READ_SECONDS = 24 * 3600
"""How long a past state is kept in object storage, where readers can't be detected."""
_WHEN = "%Y-%m-%dT%H:%M:%SZ"
_RECORD = re.compile(r"(\d{6,9})\.json")
_TAKEDOWN = re.compile(r"(\d{6,9})(?:-\d{1,5})?\.parquet")


@dataclass(frozen=True, slots=True)
class Change:
    """One change: the command ``kind``, a sentence ``what``, numbers for scripts in ``facts``, the ``state`` it made.

    ``when`` is in UTC, ISO 8601; ``who`` is the user name in the operating system.
    """

    kind: str
    what: str
    facts: dict[str, Any]
    when: str
    who: str
    state: Manifest


@dataclass(frozen=True, slots=True)
class History:
    """All changes up to the present state, oldest first; ``reach``: numbers of the states that can be restored."""

    changes: tuple[Change, ...]
    reach: tuple[int, ...]


def record_path(root: Path, state: int) -> Path:
    """Return the file of a state's record."""
    return root / FOLDER / f"{state:06d}.json"


def takedown_path(root: Path, state: Manifest) -> Path:
    """Return the file with the digests of the removal that led to a state."""
    epoch = f"-{state.epoch}" if state.epoch else ""
    return root / FOLDER / f"{state.state:06d}{epoch}.parquet"


def takedown_state(path: Path) -> int | None:
    """Return the number of the state that a file of digests belongs to; None if the name isn't that of such a file."""
    match = _TAKEDOWN.fullmatch(path.name)
    return int(match[1]) if match else None


def new_change(kind: str, what: str, facts: dict[str, Any], state: Manifest) -> Change:
    """Return a change by the current user at the current time."""
    return Change(kind, what, facts, time.strftime(_WHEN, time.gmtime()), _user(), state)


def changes(root: Path) -> list[Change]:
    """Return the records of all changes up to the present state, oldest first."""
    present = load_manifest(root).state
    folder = root / FOLDER
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    numbers = [int(match[1]) for name in names if (match := _RECORD.fullmatch(name))]
    return [load_change(root, number) for number in numbers if number <= present]


def load_history(root: Path) -> History:
    """Return the log of the store at ``root``."""
    known = changes(root)
    return History(tuple(known), tuple(change.state.state for change in within_reach(known)))


def load_change(root: Path, state: int) -> Change:
    """Return the record of a state. Raises UsageError if there is none."""
    path = record_path(root, state)
    if not path.is_file():
        raise UsageError(f"{root} has no state {state}: {command('log')} lists those it has")
    change = from_json(Change, load_json(path), str(path))
    if change.state.state != state:
        raise CorruptStoreError(f"{path} is the record of state {change.state.state}")
    return change


def within_reach(known: list[Change]) -> list[Change]:
    """Return the changes whose states can be restored: those since the last change that can't be undone.

    ``known``: all changes, oldest first.
    """
    forgot = [number for number, change in enumerate(known) if change.kind in FORGETS]
    return known[forgot[-1] if forgot else 0 :]


def hold(root: Path, state: int) -> IO[bytes] | None:
    """Share the lock of a state's record for as long as the returned file stays open.

    Return None if the state has no record or the file system has no locks; writers then can't detect this reader.
    """
    return files_of(root).hold(record_path(root, state))


def is_held(root: Path, state: int) -> bool:
    """Return whether a reader holds the state, or may hold it."""
    if files_of(root).leases:
        return _is_fresh(root, state)
    return files_of(root).is_held(record_path(root, state))


def _is_fresh(root: Path, state: int) -> bool:
    """Return whether the state is the present one or was until recently."""
    if not record_path(root, state + 1).is_file():
        return True
    try:
        over = timegm(time.strptime(load_change(root, state + 1).when, _WHEN))
    except ValueError:
        return True
    return time.time() - over < READ_SECONDS


def open_state(root: Path) -> tuple[Manifest, IO[bytes] | None]:
    """Return the present state and the lock that holds it."""
    while True:
        manifest = load_manifest(root)
        file = hold(root, manifest.state)
        # a writer may have published and cleaned up between reading the manifest and taking the lock
        if load_manifest(root).state == manifest.state:
            return manifest, file
        if file is not None:
            file.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return str(os.getuid())
