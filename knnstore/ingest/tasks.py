"""What workers run. Each task is small to send, writes files that it alone owns, commits last, and may run twice.

torch and transformers are imported when a task runs, so that the process which only hands out tasks stays small.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from knnstore.atomic import replacing_path, storage_errors, sync_folder
from knnstore.corpus.options import ReadOptions
from knnstore.corpus.tokens import PartSummary, TokenPart, survey_part, tokenise_part
from knnstore.datastore.arrays import write_chunk
from knnstore.datastore.keycodec import KeyCodec
from knnstore.datastore.segment import Segment, keys_task
from knnstore.errors import MismatchError, NumericsError
from knnstore.ingest.passes import key_model_of, place_of, stored_tokens, window_keys_of
from knnstore.lm.spec import LmFacts, LmSpec
from knnstore.records import from_json, to_json
from knnstore.windows import cut_windows

if TYPE_CHECKING:
    pass

_MOST_SHRUNK = 64  # by which this may be divided: far below a window, each is a batch of its own


def tokens_task(part: int) -> str:
    """Name of the task that tokenises a part of the corpus."""
    return f"tokens-{part:06d}"


@dataclass(frozen=True, slots=True)
class TokenTask:
    """Tokenise one part of the corpus."""

    segment: Path
    spec: LmSpec
    part: TokenPart
    options: ReadOptions

    @property
    def name(self) -> str:
        """Of its commit record."""
        return tokens_task(self.part.index)


@dataclass(frozen=True, slots=True)
class KeyTask:
    """Compute and write one chunk of keys."""

    segment: Path
    spec: LmSpec
    chunk: int
    shrunk: int = 1  # the tokens of a forward pass are divided by it

    @property
    def name(self) -> str:
        """Of its commit record."""
        return keys_task(self.chunk)

    def smaller(self) -> "KeyTask | None":
        """The same task in half the memory, for when a worker died of it; None if it can't be made smaller."""
        return replace(self, shrunk=2 * self.shrunk) if self.shrunk < _MOST_SHRUNK else None


@dataclass(frozen=True, slots=True)
class SurveyTask:
    """Say which documents are in one part of the corpus."""

    part: TokenPart
    options: ReadOptions


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """Token ids whose text's size is wanted."""

    spec: LmSpec
    texts: tuple[tuple[int, ...], ...]


def part_files(segment: Path, part: int) -> tuple[Path, Path]:
    """The temporary files of a part: its token ids, and its table of documents."""
    folder = segment / "parts"
    return folder / f"{part:06d}.tokens", folder / f"{part:06d}.parquet"


def describe_model(spec: LmSpec) -> LmFacts:
    """Load the LM and say what it is."""
    from knnstore.lm.forward import describe  # noqa: PLC0415 - see the module

    return describe(spec)


def survey(task: SurveyTask) -> tuple[int, Any]:
    """The part's number and its documents, as ``survey_part`` tells them."""
    return task.part.index, survey_part(task.part, task.options)


def tokenise(task: TokenTask) -> PartSummary:
    """Write a part's token ids and documents."""
    segment = Segment(task.segment)
    files = part_files(task.segment, task.part.index)
    model = key_model_of(task.spec, segment)
    with storage_errors("write", files[0]), replacing_path(files[0]) as ids, replacing_path(files[1]) as table:
        summary = tokenise_part(task.part, model.loaded.tokenise, task.options, segment.plan.value_dtype, ids, table)
    segment.commits.commit(task.name, files, **to_json(summary))
    return summary


def committed_summary(segment: Segment, task: TokenTask) -> PartSummary | None:
    """What an earlier run of the task did, if it is there whole."""
    commit = segment.commits.find(task.name)
    if commit is None or segment.commits.damage(task.name):  # as it may have lain on the disk for days
        return None
    return from_json(PartSummary, commit.facts, task.name)


def decoded_bytes(task: DecodeTask) -> list[int]:
    """UTF-8 bytes of the text of each list of token ids."""
    model = key_model_of(task.spec)
    return [len(model.loaded.decode(list(tokens)).encode()) for tokens in task.texts]


def text_tokens(spec: LmSpec, text: str) -> int:
    """Tokens of a text."""
    return len(key_model_of(spec).loaded.tokenise(text))


def write_keys(task: KeyTask) -> int:
    """Write one chunk of keys; return its number of rows. Raises NumericsError that names document and token."""
    segment = Segment(task.segment)
    begin, end = segment.chunk_range(task.chunk)
    model, plan, table = key_model_of(task.spec, segment), segment.plan, segment.documents
    codec = segment.codec
    windows = cut_windows(
        table.first_row, table.tokens, context=plan.key.context, stride=plan.key.stride, rows=(begin, end)
    )
    block = np.empty((end - begin, segment.dimension), codec.stored)
    for rows, keys in window_keys_of(model, windows, stored_tokens(segment, windows), task.shrunk):
        mine = (rows >= begin) & (rows < end)  # a window at the border is run by both its chunks' tasks
        block[rows[mine] - begin] = _encode(segment, codec, rows[mine], keys[mine])
    if Segment(task.segment).fingerprint != segment.fingerprint:  # a worker that was frozen for hours wakes up here
        raise MismatchError(f"{segment.root} was begun anew while {task.name} ran: its keys belong to the old one")
    file = write_chunk(segment.array_path("keys"), task.chunk, block)
    segment.commits.commit(task.name, [file], rows=end - begin)
    return end - begin


def _encode(segment: Segment, codec: KeyCodec, rows: Any, keys: Any) -> Any:
    try:
        return codec.encode(keys)
    except NumericsError as error:
        finite = np.isfinite(keys).all(axis=1) & (np.abs(keys) < 65504).all(axis=1)
        where = place_of(segment, int(rows[np.argmin(finite)]))
        raise NumericsError(f"{where}: {error}; try --dtype float32, or --key-dtype int8") from error


def remove_parts(segment: Path) -> None:
    """Remove the temporary files of tokenising and their commit records, which the finished segment doesn't need."""
    with storage_errors("clean", segment):
        for path in sorted((segment / "parts").glob("*")):
            path.unlink()
        if (segment / "parts").is_dir():
            (segment / "parts").rmdir()
            sync_folder(segment)
        for path in sorted((segment / "commits").glob("tokens-*.json")):
            path.unlink()
        sync_folder(segment / "commits")
