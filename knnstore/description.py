"""Describe a store from its records only, without loading an LM or a search library or reading keys."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knnstore.datastore.commits import Commit, CommitLog
from knnstore.datastore.layout import DOCUMENTS_FILE, SEGMENT_PLAN, SEGMENTS, SUFFIX, segment_root
from knnstore.datastore.locking import holder
from knnstore.datastore.manifest import MANIFEST_FILE, KeyRecipe, Manifest, ModelIdentity, load_manifest
from knnstore.datastore.parts import PARTS
from knnstore.datastore.removed import load_removed
from knnstore.datastore.segment import Segment
from knnstore.errors import CorruptStoreError, KnnstoreError
from knnstore.files import files_of, load_json
from knnstore.indexes.plan import load_check, segment_reference
from knnstore.indexes.protocols import IndexInfo
from knnstore.indexes.registry import open_index, type_of
from knnstore.records import from_json
from knnstore.wording import command

# Bytes per token in the memmaps of urvashik/knnlm without their fp16 option: a float32 key and an 8-byte value.
_RAW_KEY_ITEM, _RAW_VALUE = 4, 8
_MOST_MISSING = 8
_TUNED_FILE = "tuned.json"
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class CorpusInfo:
    """The source of a store's text. ``folder``: the common folder of all paths, or empty.

    ``bytes``: UTF-8 bytes of all documents; ``heldout_tokens``: held out for measurement, without keys.
    """

    folder: str
    files: int
    documents: int
    bytes: int
    heldout_documents: int
    heldout_tokens: int


@dataclass(frozen=True, slots=True)
class TunedInfo:
    """The setting that ``knnstore tune`` stored, the text it used and the perplexities measured on it."""

    k: int
    lambda_: float
    temperature: float
    text: str
    tokens: int
    lm_perplexity: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Health:
    """Files by the commit records compared with the disk, by name and size but not content.

    ``missing``: the first few paths that are absent or have the wrong size; ``missing_files`` counts all of them.
    """

    files: int
    missing_files: int
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """Everything known about a store without opening an array.

    ``state``: ``finished``, or ``begun`` during an ingest or import (then ``rows`` is the final number of keys and
    ``rows_done`` the current one). ``changes`` counts the states so far; ``removed_documents`` are hidden but still on
    disk, and ``live_rows`` belong to the other documents. ``writer``: who is writing to it now. ``parts``: bytes on
    disk by part. ``bytes_per_key`` includes everything; ``raw_bytes_per_key`` is a float32 key with an 8-byte value.
    """

    name: str
    path: Path
    format_version: int
    state: str
    writer: str | None
    model: ModelIdentity
    key: KeyRecipe
    key_dtype: str
    compute: str
    changes: int
    removed_documents: int
    live_rows: int
    segments: int
    rows: int
    rows_done: int
    corpus: CorpusInfo | None
    parts: dict[str, int]
    bytes: int
    bytes_per_key: float
    raw_bytes_per_key: int
    index: IndexInfo | None
    tuned: TunedInfo | None
    health: Health


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """A row of the table of stores. ``trouble``: why the store can't be read; then the other fields are empty."""

    name: str
    path: Path
    model: str = ""
    rows: int = 0
    bytes: int = 0
    indexed: bool = False
    state: str = ""
    trouble: str | None = None


def describe_store(root: Path) -> StoreInfo:
    """Describe the store at ``root``. Raises StoreNotFoundError, or CorruptStoreError for a damaged record."""
    manifest = load_manifest(root)
    segments = _segments(root, manifest)
    state = "finished" if manifest.segments else "begun"
    started = [segment for segment in segments if (segment.root / DOCUMENTS_FILE).is_file()]
    rows = sum(segment.rows for segment in started)
    removed = load_removed(root, manifest.removed)
    hidden = sum(
        int(s.documents.tokens[numbers[numbers < len(s.documents)]].sum())
        for s in started
        if (numbers := removed.get(s.root.name)) is not None
    )
    parts = _parts(root)
    total = sum(parts.values())
    plan = segments[0].plan if segments else None
    return StoreInfo(
        name=root.name.removesuffix(SUFFIX),
        path=root,
        format_version=manifest.version,
        state=state,
        writer=holder(root),
        model=manifest.model,
        key=manifest.key,
        key_dtype=plan.key_dtype if plan else "",
        compute=plan.compute if plan else "",
        changes=manifest.state,
        removed_documents=sum(map(len, removed.values())),
        live_rows=rows - hidden,
        segments=len(manifest.segments),
        rows=rows,
        rows_done=rows if manifest.segments else sum(_rows_done(segment) for segment in started),
        corpus=_corpus(started) if started else None,
        parts=parts,
        bytes=total,
        bytes_per_key=total / rows if rows else 0.0,
        raw_bytes_per_key=manifest.key.dimension * _RAW_KEY_ITEM + _RAW_VALUE,
        index=_index(root, manifest, segments),
        tuned=_tuned(root),
        health=_health(root, segments, manifest),
    )


def list_stores(folder: Path) -> list[StoreSummary]:
    """Return a summary of every store in a folder, sorted by name."""
    return [_summary(path.parent) for path in sorted(folder.glob(f"*{SUFFIX}/{MANIFEST_FILE}"))]


def _summary(root: Path) -> StoreSummary:
    name = root.name.removesuffix(SUFFIX)
    try:
        info = describe_store(root)
    except KnnstoreError as error:
        return StoreSummary(name, root, trouble=str(error))
    state = info.state if not info.writer else "being written"
    return StoreSummary(
        name,
        root,
        info.model.name,
        info.rows,
        info.bytes,
        info.index is not None,
        f"{info.health.missing_files:,} files missing" if info.health.missing_files else state,
    )


def _segments(root: Path, manifest: Manifest) -> list[Segment]:
    """Return the finished segments or, if there are none, the unfinished segments of a run."""
    unfinished = sorted(path.parent.name for path in (root / SEGMENTS).glob(f"*/{SEGMENT_PLAN}"))
    return [Segment(segment_root(root, name)) for name in manifest.segments or unfinished]


def _rows_done(segment: Segment) -> int:
    done = [int(commit.task.removeprefix("keys-")) for commit in segment.commits.all() if _writes_keys(commit)]
    return sum(end - begin for begin, end in map(segment.chunk_range, done))


def _writes_keys(commit: Commit) -> bool:
    return commit.task.startswith("keys-") and commit.task.removeprefix("keys-").isdigit()


def _corpus(segments: list[Segment]) -> CorpusInfo:
    tables = [segment.documents for segment in segments]
    paths = sorted(set().union(*(table.paths() for table in tables)))
    return CorpusInfo(
        folder=_common_folder(paths),
        files=len(paths),
        documents=sum(len(table) for table in tables),
        bytes=sum(table.text_bytes for table in tables),
        heldout_documents=sum(len(table.heldout()) for table in tables),
        heldout_tokens=sum(int(table.heldout_tokens.sum()) for table in tables),
    )


def _common_folder(paths: list[str]) -> str:
    if not paths:
        return ""
    if len(paths) == 1:
        return paths[0]
    if len({path.startswith("/") for path in paths}) > 1:
        return ""
    return os.path.commonpath(paths)


def _index(root: Path, manifest: Manifest, segments: list[Segment]) -> IndexInfo | None:
    if manifest.index is None or not manifest.indexed:
        return None
    folder = open_index(root, manifest.index)
    indexed = [segment for segment in segments if segment.root.name in manifest.indexed]
    check = load_check(folder, [segment_reference(segment) for segment in indexed])
    rows = sum(segment.rows for segment in indexed)
    return type_of(folder).describe(folder, rows, check)


def _tuned(root: Path) -> TunedInfo | None:
    """Return the record in ``tuned.json``, read field by field because its class needs torch."""
    path = root / _TUNED_FILE
    if not path.is_file():
        return None
    value: Any = load_json(path)
    try:
        chosen = {name: value["setting"][name] for name in ("k", "lambda_", "temperature")}
        measured = {"lm_perplexity": value["measured"]["lm"], "perplexity": value["measured"]["constant"]}
        fields = chosen | {"text": value["text"], "tokens": value["tokens"]} | measured
    except (KeyError, TypeError) as error:
        raise CorruptStoreError(
            f"{path} isn't a record of {command('tune')} ({error}): run {command('tune')} again"
        ) from error
    return from_json(TunedInfo, fields, str(path))


def _health(root: Path, segments: list[Segment], manifest: Manifest) -> Health:
    logs = [segment.commits for segment in segments]
    if manifest.index is not None:
        folder = open_index(root, manifest.index)
        indexed = [segment for segment in segments if segment.root.name in manifest.indexed]
        logs += [folder.commits, *(folder.list_commits(segment_reference(segment)) for segment in indexed)]
    expected, missing = 0, list[str]()
    for log in logs:
        for file, size in _files(log, log.all()):
            expected += 1
            if not _has_size(file, size):
                missing.append(file.relative_to(root).as_posix())
    return Health(expected, len(missing), tuple(missing[:_MOST_MISSING]))


def _files(log: CommitLog, commits: Iterable[Commit]) -> Iterable[tuple[Path, int]]:
    for commit in commits:
        for record in commit.files:
            yield log.root / record.path, record.bytes


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _parts(root: Path) -> dict[str, int]:
    """Return the bytes on disk by the labels of ``PARTS``, in their order, and of all other files."""
    totals = dict.fromkeys([label for kind in PARTS for label in kind.labels.values()], 0) | {_OTHER: 0}
    for path, size, _ in files_of(root).entries(root):
        totals[_label(path.relative_to(root).parts)] += size
    return {label: size for label, size in totals.items() if size or label == _OTHER}


def _label(inside: tuple[str, ...]) -> str:
    for kind in PARTS:
        if below := kind.below(inside):
            label = kind.labels.get(below[0]) or kind.labels.get("*")
            if label:
                return label
    return _OTHER
