"""Commit records: what is done, marked last.

A task writes files that it alone owns; then the files and their folders are flushed to the device, and
last one small JSON record is renamed into place. No record, or a record whose files aren't there with
their recorded sizes, means not done: the task runs again and overwrites. No lock is needed between tasks.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knnstore.atomic import crc32c_of, storage_errors, sync_file, sync_folder, write_json
from knnstore.errors import CorruptStoreError, MismatchError
from knnstore.records import from_json, to_json


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a task: its path below the log's root, bytes and CRC-32C."""

    path: str
    bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What one task did: its fingerprint (of all that it depends on), its files, and facts that others need."""

    task: str
    fingerprint: str
    files: tuple[FileRecord, ...]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CommitLog:
    """The commit records of one job: ``folder/<task>.json``, about files below ``root``."""

    folder: Path
    root: Path
    fingerprint: str

    def prepare(self) -> None:
        """Make the folder."""
        with storage_errors("make", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder.parent)

    def find(self, task: str) -> Commit | None:
        """The task's commit, or None if it has to run (again).

        Raises MismatchError if it was done with another fingerprint.
        """
        path = self.folder / f"{task}.json"
        if not path.exists():
            return None
        commit = _load(path)
        if commit.fingerprint != self.fingerprint:
            raise MismatchError(
                f"{path} was written by a run with other settings ({commit.fingerprint[:12]}, "
                f"now {self.fingerprint[:12]}): run with the same settings, or start anew with --overwrite"
            )
        intact = all(_size(self.root / file.path) == file.bytes for file in commit.files)
        return commit if intact else None

    def require(self, task: str) -> Commit:
        """The task's commit. Raises CorruptStoreError if it isn't there or its files aren't."""
        commit = self.find(task)
        if commit is None:
            raise CorruptStoreError(f"{self.root}: {task} is missing or damaged: run the command that made it again")
        return commit

    def commit(self, task: str, files: Sequence[Path], **facts: Any) -> Commit:
        """Flush the files and their folders up to the root, then mark the task done."""
        with storage_errors("flush", self.root):
            for file in files:
                sync_file(file)
            for folder in sorted({parent for file in files for parent in self._folders(file)}, reverse=True):
                sync_folder(folder)
            records = tuple(
                FileRecord(file.relative_to(self.root).as_posix(), file.stat().st_size, crc32c_of(file))
                for file in files
            )
        commit = Commit(task, self.fingerprint, records, facts)
        write_json(self.folder / f"{task}.json", to_json(commit))
        return commit

    def all(self) -> Iterator[Commit]:
        """Every commit record there is, by name."""
        for path in sorted(self.folder.glob("*.json")):
            yield _load(path)

    def _folders(self, file: Path) -> Iterator[Path]:
        for parent in file.parents:
            yield parent
            if parent == self.root:
                return


def _load(path: Path) -> Commit:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptStoreError(f"{path} is not JSON ({error}): delete it and run the same command again") from error
    return from_json(Commit, value, str(path))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
