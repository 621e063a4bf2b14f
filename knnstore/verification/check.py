"""Read every byte of a store and compare it with what was recorded when it was written.

A store consists of parts: folders with a ``commits/`` folder, each with a plan. Every file belongs to one record of its
part or is JSON with its own checksum. Any other file is damage too, since it can't be verified. This module doesn't
know the purpose of a part.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from knnstore.datastore.arrays import METADATA_FILE, chunk_file, open_array
from knnstore.datastore.commits import COMMITS_FOLDER, Commit, FileRecord, file_damage, load_commit
from knnstore.datastore.history import FOLDER as LOG
from knnstore.datastore.locking import LOCK_FILE
from knnstore.datastore.manifest import MANIFEST_FILE, load_manifest
from knnstore.datastore.parts import PARTS, SCRATCH, is_done
from knnstore.datastore.removed import FOLDER as REMOVED
from knnstore.errors import CorruptStoreError, LockedError, StoreNotFoundError
from knnstore.files import CHECKSUM_FIELD, files_of, load_json, unseal_json, version_of
from knnstore.files.objects.whole import read_afresh
from knnstore.progress import Reporter
from knnstore.records import fingerprint, from_json
from knnstore.verification.bitflips import corrected, corrected_file
from knnstore.verification.damage import Damage, describe
from knnstore.verification.leftovers import needed
from knnstore.verification.lists import list_problems
from knnstore.verification.states import missing_states, takedown_problem
from knnstore.wording import command

UNRECORDED = "is in no commit record"
_MOST_PASSES = 10


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of ``verify``. ``leftovers``: files that a killed writer left behind or that were discarded."""

    store: str
    files: int
    bytes: int
    damages: tuple[Damage, ...]
    leftovers: tuple[str, ...]
    finished: bool

    @property
    def intact(self) -> bool:
        """Return whether every byte is as it was written."""
        return not self.damages


@dataclass(slots=True)
class _Coverage:
    """The record of each file, and the problems of the records themselves."""

    records: dict[Path, tuple[Path, FileRecord]] = field(default_factory=dict)
    problems: dict[Path, str] = field(default_factory=dict)


def verify(root: Path, reporter: Reporter | None = None) -> VerifyReport:
    """Read every file of the store at ``root``.

    If a writer publishes a new state in the meantime, apparent damage may be files that it removed; the store is then
    listed again, and files not read yet are read. Raises StoreNotFoundError if there is no store, LockedError if it
    keeps changing.
    """
    reporter = reporter or Reporter()
    require_store(root)
    read: set[Path] = set()
    for _ in range(_MOST_PASSES):
        state = version_of(root / MANIFEST_FILE)
        report = _verify(root, reporter, read)
        if report.intact or version_of(root / MANIFEST_FILE) == state:
            return report
        reporter.say("verify    the store has changed in the meantime: reading the new files")
    raise LockedError(
        f"{root} has changed {_MOST_PASSES} times while it was read: verify it when its writers have finished"
    )


def _verify(root: Path, reporter: Reporter, read: set[Path]) -> VerifyReport:
    """Check all files except those in ``read``, in one pass; add intact files to ``read``."""
    entries = {path: kind for path, _, kind in files_of(root).entries(root)}
    files = [path for path, kind in entries.items() if kind is None and path != root / LOCK_FILE]
    need = needed(root)
    leftovers = [path for path in files if need.is_leftover(path)]
    coverage, finished = _cover(sorted(set(files) - set(leftovers))), _finished_parts(root)
    problems = {path: f"is {kind}, but a store may only hold plain files" for path, kind in entries.items() if kind}
    sizes = {path: _size(path) for path in files}
    total = sum(size for path, size in sizes.items() if path not in read)
    with reporter.bar("verify", total, "B") as advance, read_afresh():
        for path in sorted({*files, *(_expected(coverage, finished))} - {*leftovers, *problems, *read}):
            if problem := coverage.problems.get(path) or _problem(path, coverage, advance):
                problems[path] = problem
            elif path in coverage.records:  # other files are small and may be replaced before the next pass
                read.add(path)
    if need.present is not None:
        problems |= {path: fault for path, fault in list_problems(root, need.present) if path not in problems}
    dropped = (need.present.dropped if need.present else None) or ()
    missing = {*_missing(finished, coverage, problems, set(files)), *missing_states(root, set(files))}
    missing |= {root / MANIFEST_FILE} - set(files)  # also if there is a folder of that name
    problems |= dict.fromkeys(missing - problems.keys(), "is missing")
    return VerifyReport(
        store=str(root),
        files=len(files),
        bytes=sum(sizes.values()),
        damages=tuple(_damage(root, path, problem, dropped) for path, problem in sorted(problems.items())),
        leftovers=tuple(path.relative_to(root).as_posix() for path in leftovers),
        finished=bool(finished),
    )


def _size(path: Path) -> int:
    """Return the bytes of a file; 0 if a writer has just removed it."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def require_store(root: Path) -> None:
    """Raise StoreNotFoundError unless there is a store at ``root``, damaged or not."""
    if not root.is_dir():
        raise StoreNotFoundError(f"no store at {root}: see {command('ingest', help=True)} to make one")
    manifest = root / MANIFEST_FILE
    if not (manifest.exists() or manifest.is_symlink()):
        raise StoreNotFoundError(f"no store at {root}: it has no {MANIFEST_FILE}")


def _cover(files: list[Path]) -> _Coverage:
    coverage = _Coverage()
    fingerprints: dict[Path, str | None] = {}
    for path in files:
        if path.parent.name != COMMITS_FOLDER or path.suffix != ".json":
            continue
        part = path.parent.parent
        if part not in fingerprints:
            fingerprints[part] = _fingerprint(part)
        commit: Commit | None
        try:
            commit = _checked(path, load_commit(path), fingerprints[part])
        except CorruptStoreError as error:
            coverage.problems[path] = _without_path(error, path)
            commit = _corrected_commit(path)
        for record in commit.files if commit else ():
            known = coverage.records.setdefault(part / record.path, (part, record))
            if known[1] != record:
                coverage.problems[path] = f"and another record disagree about {record.path}"
    return coverage


def _corrected_commit(path: Path) -> Commit | None:
    """Return a damaged record without its flipped bit if there is only one, so that its files can still be checked."""
    try:
        data = corrected(path.read_bytes())
        return None if data is None else from_json(Commit, unseal_json(data), str(path))
    except (CorruptStoreError, FileNotFoundError):
        return None


def _checked(path: Path, commit: Commit, expected: str | None) -> Commit:
    if commit.task != path.stem:
        raise CorruptStoreError(f"is the record of {commit.task!r:.60}")
    if expected is not None and commit.fingerprint != expected:
        raise CorruptStoreError(f"belongs to another plan ({commit.fingerprint[:12]}, this one is {expected[:12]})")
    return commit


def _fingerprint(part: Path) -> str | None:
    """Return the fingerprint of a part's plan, shared by folders inside (such as runs); None if it is damaged."""
    for folder in (part, part.parent):
        for name in {kind.plan for kind in PARTS}:
            if (folder / name).is_file():
                try:
                    return fingerprint(load_json(folder / name))
                except CorruptStoreError:
                    return None
    return None


def _problem(path: Path, coverage: _Coverage, advance: Callable[[int], None]) -> str | None:
    """Return what is wrong with a file, in words, or None."""
    if path in coverage.records:
        return file_damage(*coverage.records[path], advance)
    advance(_size(path))
    try:
        return _own_problem(path)
    except FileNotFoundError:  # a writer has removed it
        return "is missing"


def _own_problem(path: Path) -> str | None:
    """Return what is wrong with a file that has no record, in words, or None."""
    if path.parent.name == LOG and path.suffix == ".parquet":
        return takedown_problem(path)
    if path.parent.name == REMOVED:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return None if digest.startswith(path.stem) else "doesn't match the digest in its name"
    if path.suffix != ".json" or path.name == METADATA_FILE:
        return UNRECORDED
    try:
        load_json(path)
    except CorruptStoreError as error:
        return _without_path(error, path)
    return None if f'"{CHECKSUM_FIELD}"'.encode() in path.read_bytes() else "has no checksum"


def _expected(coverage: _Coverage, finished: dict[Path, Path]) -> Iterator[Path]:
    """Yield the files that must exist: those in the records of the parts that the manifest names."""
    for path in coverage.records:
        if set(path.parents) & finished.keys() and not any(map(SCRATCH.fullmatch, path.parts)):
            yield path


def _finished_parts(root: Path) -> dict[Path, Path]:
    """Return the folders that must be complete, those that the manifest names, each with the path of its plan."""
    try:
        manifest = load_manifest(root)
    except CorruptStoreError:
        return {}
    parts = {}
    for kind in PARTS:
        done = (path for path, _ in kind.folders(root) if kind.is_needed is None and is_done(path))
        for path in (*kind.whole(root, manifest), *done):
            parts[path] = root.joinpath(*path.relative_to(root).parts[:2]) / kind.plan
    return parts


def _missing(parts: dict[Path, Path], coverage: _Coverage, known: dict[Path, str], files: set[Path]) -> Iterator[Path]:
    """Yield the missing files of finished parts that are in no record: plans, and chunks of arrays."""
    yield from (plan for plan in parts.values() if plan not in files)
    for metadata in (path for path in files if path.name == METADATA_FILE and parts.keys() & set(path.parents)):
        try:
            form = open_array(metadata.parent)
        except CorruptStoreError:  # reported already, or a group
            continue
        for chunk in range(min(form.chunks, len(files) + 1)):  # a damaged shape may claim any number
            path = chunk_file(metadata.parent, chunk, len(form.shape))
            if path not in coverage.records and path not in known and path not in files:
                yield path


def _damage(root: Path, path: Path, problem: str, dropped: tuple[str, ...]) -> Damage:
    damage = describe(root, path, problem, dropped)
    if corrected_file(root, path) is not None:
        return Damage(damage.path, problem, "checksum")
    return damage


def _without_path(error: Exception, path: Path) -> str:
    """Return an error's message without the path at its start and the hint at its end."""
    return str(error).removeprefix(str(path)).lstrip(": ").partition(". See what else")[0]
