"""Write the segment of an import: documents, values and keys. Each chunk is a task that commits last."""

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.adopting import own_segment
from knnstore.datastore.discarding import open_store, other_store
from knnstore.datastore.documents import VALUE_CHUNK_ROWS, plain_documents
from knnstore.datastore.edits import Edit
from knnstore.datastore.keycodec import scales_of
from knnstore.datastore.layout import DOCUMENTS_FILE, SEGMENT_PLAN, segment_root
from knnstore.datastore.segment import DOCUMENTS_TASK, SAMPLES_TASK, Segment, SegmentPlan, keys_task
from knnstore.datastore.segmentwriter import SegmentWriter
from knnstore.datastore.sweeping import unfinished
from knnstore.datastore.tables import write_table
from knnstore.diskspace import require_room
from knnstore.errors import CorpusError, MismatchError, NumericsError
from knnstore.exchange.keysource import KeySource
from knnstore.ingestion.plan import differences, key_bytes
from knnstore.lm.identity import may_be_same
from knnstore.progress import Reporter
from knnstore.scheduling import Job, Stage
from knnstore.wording import option

_SCALE_BLOCKS, _SCALE_ROWS = 64, 1024


def read_values(source: KeySource, begin: int, end: int, vocabulary: int) -> Any:
    """Return the values of rows ``[begin, end)``. Raises CorpusError for a value that isn't a token."""
    values = source.read_values(begin, end)
    wrong = (values < 0) | (values >= vocabulary)
    if not wrong.any():
        return values
    row = int(np.argmax(wrong))
    raise CorpusError(
        f"{source.name}: value {int(values[row])} of row {begin + row:,} isn't a token of a vocabulary of "
        f"{vocabulary:,}: check {option('model')} and {option('vocabulary')}, or {source.remedy}"
    )


def begin_segment(edit: Edit, plan: SegmentPlan, *, overwrite: bool) -> SegmentWriter:
    """Return the writer of the segment of ``plan``: finished, left by an interrupted run, or new.

    Raises MismatchError for a store that holds anything else.
    """
    root = edit.root
    open_store(edit, plan.model, plan.key, parameter="store", overwrite=overwrite)
    published = [segment_root(root, name) for name in edit.state.segments]
    unpublished = [path for path in unfinished(root) if (path / SEGMENT_PLAN).is_file()]
    path = next(iter([*published, *unpublished]), None)
    if path is not None:
        existing = Segment(path).plan
        if may_be_same(existing.model, plan.model):  # an import needs no more keys from the LM, so this suffices
            plan = replace(plan, model=existing.model, versions=existing.versions)
        changed = differences(existing, plan)
        if changed or len(published) > 1:
            raise MismatchError(
                f"{root} holds something else, or was started with other settings: "
                f"{'; '.join(changed or ['more keys'])}. Run with the same ones, {other_store()}"
            )
        if published:
            return SegmentWriter(Segment(path))
    return SegmentWriter.begin(own_segment(edit, path), plan)


@dataclass(frozen=True, slots=True)
class ImportTask:
    """Encode and write a chunk of ``rows`` keys."""

    segment: Path
    source: KeySource
    chunk: int
    rows: int

    @property
    def name(self) -> str:
        """Return the name of the commit."""
        return keys_task(self.chunk)


def import_keys(task: ImportTask) -> int:
    """Write a chunk of keys; return its number of rows."""
    segment = Segment(task.segment)
    keys = _encoded(segment, task.source, *segment.chunk_range(task.chunk))
    return SegmentWriter(segment).write_keys(task.chunk, keys)


def write_segment(writer: SegmentWriter, source: KeySource, job: Job) -> tuple[int, int, float]:
    """Write what is missing; return the chunks written, the chunks kept, and the keys per second."""
    segment = writer.segment
    if writer.lacks(DOCUMENTS_TASK):
        _write_documents(writer, source, job.reporter)
    ranges = map(segment.chunk_range, range(segment.chunks))
    tasks = [ImportTask(segment.root, source, chunk, end - begin) for chunk, (begin, end) in enumerate(ranges)]
    stage = Stage("keys", segment.commits, tasks, import_keys)
    require_room(segment.root, key_bytes(segment, len(stage.missing)), f"{segment.rows:,} keys")
    writer.lay_out_keys()
    if writer.lacks(SAMPLES_TASK):
        _write_samples(writer, source)
    started = time.perf_counter()
    written = stage.resume(job)
    speed = sum(task.rows for task in written) / (time.perf_counter() - started)
    return len(written), segment.chunks - len(written), speed


def _write_documents(writer: SegmentWriter, source: KeySource, reporter: Reporter) -> None:
    """Write the values and the documents; nothing is held out."""
    plan, entries = writer.segment.plan, []
    dtype = plan.value_dtype
    with writer.task(DOCUMENTS_TASK) as task:
        with (
            task.appending(values=source.rows, heldout=0) as (stored, _),
            reporter.bar("values", source.rows, "tokens") as advance,
        ):
            first = 0
            for name, tokens in source.documents():
                digest = hashlib.sha256()
                for begin in range(first, first + tokens, VALUE_CHUNK_ROWS):
                    end = min(begin + VALUE_CHUNK_ROWS, first + tokens)
                    values = read_values(source, begin, end, plan.model.vocabulary).astype(dtype)
                    digest.update(values.astype(dtype.newbyteorder("<")).tobytes())
                    stored.append(values)
                    advance(len(values))
                entries.append((name, tokens, digest.digest()))
                first += tokens
        write_table(task.file(DOCUMENTS_FILE), plain_documents(entries))


def _write_samples(writer: SegmentWriter, source: KeySource) -> None:
    """Write the int8 scales but no queries, because held-out text of the other toolkit isn't known."""
    with writer.task(SAMPLES_TASK) as task:
        if writer.segment.plan.key_dtype == "int8":
            starts = np.unique(np.linspace(0, max(0, source.rows - _SCALE_ROWS), _SCALE_BLOCKS).astype(np.int64))
            blocks = [source.read_keys(int(s), min(int(s) + _SCALE_ROWS, source.rows)) for s in starts]
            task.write_whole(key_scales=scales_of(np.concatenate(blocks).astype(np.float32)))
        task.write_queries(np.empty(0, np.int64), np.empty((0, writer.segment.dimension), np.float32))


def _encoded(segment: Segment, source: KeySource, begin: int, end: int) -> Any:
    keys = source.read_keys(begin, end).astype(np.float32)
    try:
        return segment.codec.encode(keys)
    except NumericsError as error:
        row = begin + int(np.argmin(np.isfinite(keys).all(axis=1) & (np.abs(keys) < 65504).all(axis=1)))
        raise NumericsError(
            f"{source.name}, row {row:,}: {error}; {source.remedy}, or store them as {option('key_dtype', 'int8')}"
        ) from error
