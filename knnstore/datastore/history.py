"""The states of a store: each change is one atomic step of the manifest, with a record of who, when and what.

::

    log/000003.json       Change: the state that it made, and who, when, what
    log/000003.parquet    the SHA-256 of the texts that it removed, if it is a removal; from the second epoch on with
                          its number, 000003-1.parquet

The record is written first and the manifest replaced after it, so a change that was cut short is no change. A reader
holds the record of the state that it reads by a shared lock for as long as it reads; files of a state that is over are
removed only when nobody holds it. The log is the one part of a store that names times and people.
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
"""The fact of a change that is the SHA-256 of its file of removed texts."""
OVERWRITE = "overwrite"
"""The kind of change that discards all that the store held."""
FORGETS = ("compact", "merge", "subset", "drop-keys", OVERWRITE)
"""Changes behind which the store can't be taken back: what was before them is gone."""
READ_SECONDS = 24 * 3600
"""So long after a state is over it may be read yet, in object storage, where readers can't be seen."""
_WHEN = "%Y-%m-%dT%H:%M:%SZ"
_RECORD = re.compile(r"(\d{6,9})\.json")
_TAKEDOWN = re.compile(r"(\d{6,9})(?:-\d{1,5})?\.parquet")


@dataclass(frozen=True, slots=True)
class Change:
    """One change: the command ``kind``, a sentence ``what``, numbers for scripts in ``facts``, the ``state`` it made.

    ``when`` in UTC, ISO 8601; ``who`` as the operating system calls the user.
    """

    kind: str
    what: str
    facts: dict[str, Any]
    when: str
    who: str
    state: Manifest


@dataclass(frozen=True, slots=True)
class History:
    """All changes up to the present state, oldest first; ``reach``: numbers of the states that can be returned to."""

    changes: tuple[Change, ...]
    reach: tuple[int, ...]


def record_path(root: Path, state: int) -> Path:
    """The file of a state's record."""
    return root / FOLDER / f"{state:06d}.json"


def takedown_path(root: Path, state: Manifest) -> Path:
    """The file of digests of the removal behind a state."""
    epoch = f"-{state.epoch}" if state.epoch else ""
    return root / FOLDER / f"{state.state:06d}{epoch}.parquet"


def takedown_state(path: Path) -> int | None:
    """The number of the state that a file of digests belongs to; None if it isn't named as one."""
    match = _TAKEDOWN.fullmatch(path.name)
    return int(match[1]) if match else None


def new_change(kind: str, what: str, facts: dict[str, Any], state: Manifest) -> Change:
    """A change that this user makes now."""
    return Change(kind, what, facts, time.strftime(_WHEN, time.gmtime()), _user(), state)


def changes(root: Path) -> list[Change]:
    """The records of all changes up to the present state, oldest first."""
    present = load_manifest(root).state
    folder = root / FOLDER
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    numbers = [int(match[1]) for name in names if (match := _RECORD.fullmatch(name))]
    return [load_change(root, number) for number in numbers if number <= present]


def load_history(root: Path) -> History:
    """The log of the store at ``root``."""
    known = changes(root)
    return History(tuple(known), tuple(change.state.state for change in within_reach(known)))


def load_change(root: Path, state: int) -> Change:
    """The record of a state. Raises UsageError if there is none."""
    path = record_path(root, state)
    if not path.is_file():
        raise UsageError(f"{root} has no state {state}: {command('log')} lists those it has")
    change = from_json(Change, load_json(path), str(path))
    if change.state.state != state:
        raise CorruptStoreError(f"{path} tells of state {change.state.state}")
    return change


def within_reach(known: list[Change]) -> list[Change]:
    """Return the changes whose states can be restored: those since the last one behind which nothing is kept.

    ``known``: all changes, oldest first.
    """
    forgot = [number for number, change in enumerate(known) if change.kind in FORGETS]
    return known[forgot[-1] if forgot else 0 :]


def hold(root: Path, state: int) -> IO[bytes] | None:
    """Share the lock of a state's record, for as long as what is returned stays open.

    None where the state has no record, or the file system has no locks: then nothing tells writers of this reader.
    """
    return files_of(root).hold(record_path(root, state))


def is_held(root: Path, state: int) -> bool:
    """Whether a reader holds the state, or may hold it."""
    if files_of(root).leases:
        return _is_fresh(root, state)
    return files_of(root).is_held(record_path(root, state))


def _is_fresh(root: Path, state: int) -> bool:
    """Whether the state is the present one, or was not long ago."""
    if not record_path(root, state + 1).is_file():
        return True
    try:
        over = timegm(time.strptime(load_change(root, state + 1).when, _WHEN))
    except ValueError:
        return True
    return time.time() - over < READ_SECONDS


def open_state(root: Path) -> tuple[Manifest, IO[bytes] | None]:
    """The present state and the lock that holds it."""
    while True:
        manifest = load_manifest(root)
        file = hold(root, manifest.state)
        # a writer may have gone on, and cleaned up, between the look and the lock
        if load_manifest(root).state == manifest.state:
            return manifest, file
        if file is not None:
            file.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return str(os.getuid())
