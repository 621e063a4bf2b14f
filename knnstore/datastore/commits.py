"""Commit records: a task is marked done after everything else.

A task writes files that only it owns. The files and their folders are then flushed to the device, and finally one
small JSON record is renamed into place. Without a record, or if a file is missing or doesn't have its recorded size,
the task isn't done: it runs again and overwrites its files. No lock is needed between tasks.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import google_crc32c

from knnstore.datastore.arrays import CHECKSUM_BYTES
from knnstore.errors import CorruptStoreError, MismatchError, ResourceError
from knnstore.files import at_once, files_of, flush, load_json, make_folder, open_regular, storage_errors, write_json
from knnstore.records import from_json, to_json
from knnstore.wording import command, option

COMMITS_FOLDER = "commits"
DONE = "done"
"""The last task of a part that no state names: only its record marks the part as complete."""
_BLOCK = 2**22
_CHUNK_PATH = re.compile(r"(?:^|/)c/([0-9]{1,15})(?:/0)*$")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a task: its path below the log's root, bytes and CRC-32C.

    For a chunk of an array, ``crc32c`` covers the bytes before the chunk's own checksum. The CRC-32C of any bytes that
    end in their own CRC-32C is the same constant, so that with it a chunk in the place of another would go unnoticed.
    """

    path: str
    bytes: int
    crc32c: int

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\0" in self.path:
            raise ValueError(f"{self.path!r:.80} is no path inside the store")

    @property
    def chunk(self) -> int | None:
        """Return the number of the chunk if the file is a chunk of an array, else None."""
        return chunk_number(self.path)


@dataclass(frozen=True, slots=True)
class Commit:
    """The record of one task: the fingerprint of all its inputs, its files, and facts that other tasks need."""

    task: str
    fingerprint: str
    files: tuple[FileRecord, ...]
    facts: dict[str, Any]

    def number(self, name: str) -> float:
        """Return a fact that is a finite number. Raises CorruptStoreError if it is missing or isn't a number."""
        value = self.facts.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63:
            raise CorruptStoreError(f"the record of {self.task} has {value!r:.40} for {name}, which is no number")
        return value


@dataclass(frozen=True, slots=True)
class CommitLog:
    """The commit records of one job: ``folder/<task>.json``, about files below ``root``."""

    folder: Path
    root: Path
    fingerprint: str

    def prepare(self) -> None:
        """Create the folder."""
        make_folder(self.folder)

    def find(self, task: str) -> Commit | None:
        """Return the task's commit, or None if the task has to run (again).

        Raises MismatchError if it was done with another fingerprint.
        """
        commit = self._recorded(task)
        return commit if commit and _is_intact(commit, lambda file: _size(self.root / file)) else None

    def find_all(self, tasks: Iterable[str]) -> dict[str, Commit]:
        """Return the commits of the tasks that are done, with the same checks as ``find``.

        In object storage this takes one listing and reads many records at a time; ``find`` sends a request per file.
        """
        files = files_of(self.root)
        if not files.fetches:
            return {task: commit for task in tasks if (commit := self.find(task))}
        sizes = {str(path): size for path, size, _ in files.entries(self.root)}
        recorded = [task for task in tasks if str(self.folder / f"{task}.json") in sizes]

        commits = at_once(lambda task: self._load(self.folder / f"{task}.json"), recorded)
        return {
            task: commit
            for task, commit in zip(recorded, commits, strict=True)
            if _is_intact(commit, lambda file: sizes.get(str(self.root / file), -1))
        }

    def _recorded(self, task: str) -> Commit | None:
        """Return the commit in a task's record, whatever has become of its files; None if there is no record."""
        path = self.folder / f"{task}.json"
        return self._load(path) if path.is_file() else None

    def _load(self, path: Path) -> Commit:
        commit = load_commit(path)
        if commit.fingerprint != self.fingerprint:
            raise MismatchError(
                f"{path} was written by a run with other settings ({commit.fingerprint[:12]}, "
                f"now {self.fingerprint[:12]}): run with the same settings, or start again with "
                f"{option('overwrite', True)}"
            )
        return commit

    def require(self, task: str) -> Commit:
        """Return the task's commit. Raises CorruptStoreError if the record or one of its files is missing."""
        return self.find(task) or self._missing(task)

    def _missing(self, task: str) -> NoReturn:
        raise CorruptStoreError(f"{self.root}: {task} is missing or damaged: run the command that made it again")

    def commit(self, task: str, files: Sequence[Path], **facts: Any) -> Commit:
        """Flush the files and their folders up to the root, then mark the task done."""
        with storage_errors("flush", self.root):
            flush(*files)
            flush(*sorted({parent for file in files for parent in self._folders(file)}, reverse=True))
            records = tuple(self._record(file) for file in files)
        commit = Commit(task, self.fingerprint, records, facts)
        write_json(self.folder / f"{task}.json", to_json(commit))
        return commit

    def forget(self, task: str) -> None:
        """Remove a task's record, so that the task runs again."""
        with storage_errors("remove", self.folder):
            (self.folder / f"{task}.json").unlink(missing_ok=True)
            flush(self.folder)

    def forget_damaged(self) -> list[str]:
        """Remove the records of the tasks that ``damaged`` returns; return the reasons, in words."""
        damaged = self.damaged()
        for task in damaged:
            self.forget(task)
        return list(damaged.values())

    def adopt(self, tasks: str, older: str) -> None:
        """Adopt the records of ``tasks`` (a glob) that have the fingerprint ``older`` and whose files stay valid."""
        for path in sorted(self.folder.glob(f"{tasks}.json")):
            if (commit := load_commit(path)).fingerprint == older:
                write_json(path, to_json(replace(commit, fingerprint=self.fingerprint)))

    def damage(self, task: str) -> str | None:
        """Return what is wrong with a task's files, in words, or None. Raises what ``require`` raises."""
        for file in self.require(task).files:
            if damage := file_damage(self.root, file):
                return f"{self.root / file.path} {damage}"
        return None

    def damaged(self, *, contents: bool = True) -> dict[str, str]:
        """Return the recorded tasks whose results can't be used, each with the reason, in words.

        The record is unreadable or belongs to another job or, with ``contents``, a file differs from its record. For
        that all files are read, except in object storage, which verifies checksums of its own.
        """
        reads = contents and not files_of(self.root).fetches
        problems = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                commit = load_commit(path)
            except CorruptStoreError as error:
                problems[path.stem] = str(error)
                continue
            if commit.fingerprint != self.fingerprint or commit.task != path.stem:
                problems[path.stem] = f"{path} belongs to another job"
                continue
            damages = (
                f"{self.root / file.path} {fault}" for file in commit.files if (fault := file_damage(self.root, file))
            )
            if reads and (damage := next(damages, None)):
                problems[path.stem] = damage
        return problems

    def all(self) -> Iterator[Commit]:
        """Yield every commit record, sorted by name."""
        for path in sorted(self.folder.glob("*.json")):
            yield load_commit(path)

    def require_file(self, task: str, path: str) -> None:
        """Raise CorruptStoreError unless the task's record has the file ``path`` and its bytes match the record."""
        commit = self._recorded(task) or self._missing(task)
        record = next((file for file in commit.files if file.path == path), None)
        damage = "is in no commit record" if record is None else file_damage(self.root, record)
        if damage:
            raise CorruptStoreError(f"{self.root / path} {damage}: see what else is damaged with {command('verify')}")

    def _record(self, file: Path) -> FileRecord:
        path, chunk = file.relative_to(self.root).as_posix(), chunk_number(file.as_posix()) is not None
        description = files_of(file).describe(file)
        if sums := description.sums:
            return FileRecord(path, sums.size, sums.body if chunk else sums.crc32c)  # computed when it was written
        return FileRecord(path, description.size, _checksums(file, description.size, chunk=chunk)[0])

    def _folders(self, file: Path) -> Iterator[Path]:
        for parent in file.parents:
            yield parent
            if parent == self.root:
                return


def begin_part(root: Path, plan_file: str, plan: Any) -> None:
    """Create or reopen the folder of a part: first the folder of its commit records, then its plan."""
    make_folder(root / COMMITS_FOLDER)
    write_json(root / plan_file, to_json(plan))


def _is_intact(commit: Commit, size_of: Callable[[str], int]) -> bool:
    """Return whether a task's files have their recorded sizes."""
    return all(size_of(file.path) == file.bytes for file in commit.files)


def load_commit(path: Path) -> Commit:
    """Return a commit record. Raises CorruptStoreError if it is damaged."""
    return from_json(Commit, load_json(path), str(path))


def chunk_number(path: str) -> int | None:
    """Return the chunk number in a path, or None if it isn't a chunk: ``keys/c/7/0`` is chunk 7."""
    match = _CHUNK_PATH.search(path)
    return int(match[1]) if match else None


def file_damage(root: Path, record: FileRecord, advance: Callable[[int], None] = lambda _: None) -> str | None:
    """Return what is wrong with a file, in words, or None. Reads all of it; calls ``advance`` with the bytes read."""
    path = root / record.path
    size = _size(path)
    if size != record.bytes:
        return "is missing" if size < 0 else f"has {size} bytes, not {record.bytes}"
    try:
        checksum, own = _checksums(path, size, chunk=record.chunk is not None, advance=advance)
    except ResourceError:
        raise
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    if checksum != record.crc32c:
        swapped = ": it is intact, but in the place of another" if record.chunk is not None and checksum == own else ""
        return f"isn't what was written (CRC-32C {checksum:08x}, recorded {record.crc32c:08x}){swapped}"
    return None if checksum == own else f"ends in a wrong checksum ({own:08x}, its bytes have {checksum:08x})"


def _crc32c(file: BinaryIO, length: int | None, advance: Callable[[int], None]) -> int:
    """Return the CRC-32C of the next ``length`` bytes of an open file; None for all."""
    checksum, left = 0, sys.maxsize if length is None else length
    while block := file.read(min(_BLOCK, left)):
        checksum = google_crc32c.extend(checksum, block)
        left -= len(block)
        advance(len(block))
    return int(checksum)


def _checksums(
    path: Path, size: int, *, chunk: bool, advance: Callable[[int], None] = lambda _: None
) -> tuple[int, int]:
    """Return the CRC-32C of a file's bytes, and the one stored at the end if it is a chunk, else the same again.

    The stored checksum of a chunk isn't part of the bytes.
    """
    with open_regular(path) as file:
        checksum = _crc32c(file, max(0, size - CHECKSUM_BYTES) if chunk else None, advance)
        return checksum, int.from_bytes(file.read(), "little") if chunk else checksum


def _size(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_size
    except ResourceError:
        raise  # an unreachable service says nothing about the file
    except OSError:
        return -1
