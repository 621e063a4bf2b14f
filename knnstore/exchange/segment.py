"""Writes the segment of an import: one document, its values, its keys; each chunk a task that is marked done last."""

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.adopting import own_segment
from knnstore.datastore.discarding import open_store, other_store
from knnstore.datastore.documents import VALUE_CHUNK_ROWS, single_document
from knnstore.datastore.edits import Edit
from knnstore.datastore.keycodec import scales_of
from knnstore.datastore.segment import (
    DOCUMENTS_FILE,
    DOCUMENTS_TASK,
    PLAN_FILE,
    SAMPLES_TASK,
    Segment,
    SegmentPlan,
    keys_task,
)
from knnstore.datastore.segmentwriter import SegmentWriter
from knnstore.datastore.store import segment_root
from knnstore.datastore.sweeping import unfinished
from knnstore.datastore.tables import write_table
from knnstore.diskspace import require_room
from knnstore.errors import CorpusError, MismatchError, NumericsError
from knnstore.exchange.rawfile import Memmaps
from knnstore.ingestion.plan import differences, key_bytes
from knnstore.lm.identity import may_be_same
from knnstore.progress import Reporter
from knnstore.scheduling import Job, Stage
from knnstore.wording import option

_SCALE_BLOCKS, _SCALE_ROWS = 64, 1024


def read_values(memmaps: Memmaps, begin: int, vocabulary: int | None) -> Any:
    """A block of values (n,). Raises CorpusError for one that is no token."""
    values = memmaps.values.read(begin, min(begin + VALUE_CHUNK_ROWS, memmaps.rows))[:, 0]
    wrong = values < 0 if vocabulary is None else (values < 0) | (values >= vocabulary)
    if not wrong.any():
        return values
    row = int(np.argmax(wrong))
    where = f"{memmaps.values.path}: value {int(values[row])} of row {begin + row:,}"
    if values[row] < 0 and memmaps.values.dtype == "int16":
        raise CorpusError(
            f"{where} has overflowed int16: say how many tokens there are with {option('vocabulary')}, or give the "
            f"{option('model')}; up to {2**16:,} the tokens can be told, beyond that they are lost"
        )
    if values[row] < 0:
        raise CorpusError(
            f"{where} is negative, which no token is: check {option('value_type')}, or leave the last rows out with "
            f"{option('rows')}"
        )
    raise CorpusError(
        f"{where} is no token of a vocabulary of {vocabulary:,}: check {option('model')}, {option('vocabulary')} or "
        f"{option('value_type')}"
    )


def begin_segment(edit: Edit, plan: SegmentPlan, *, overwrite: bool) -> SegmentWriter:
    """The segment of ``plan``, finished, begun or made; refuses a store that holds anything else."""
    root = edit.root
    open_store(edit, plan.model, plan.key, parameter="store", overwrite=overwrite)
    published = [segment_root(root, name) for name in edit.state.segments]
    unpublished = [path for path in unfinished(root) if (path / PLAN_FILE).is_file()]
    path = next(iter([*published, *unpublished]), None)
    if path is not None:
        begun = Segment(path).plan
        if may_be_same(begun.model, plan.model):  # the LM is not asked for any more key
            plan = replace(plan, model=begun.model, versions=begun.versions)
        told = differences(begun, plan)
        if told or len(published) > 1:
            raise MismatchError(
                f"{root} holds something else, or was begun with other settings: {'; '.join(told or ['more keys'])}. "
                f"Run with the same ones, {other_store()}"
            )
        if published:
            return SegmentWriter(Segment(path))
    return SegmentWriter.begin(own_segment(edit, path), plan)


@dataclass(frozen=True, slots=True)
class ImportTask:
    """Encode and write a chunk of ``rows`` keys."""

    segment: Path
    memmaps: Memmaps
    chunk: int
    rows: int

    @property
    def name(self) -> str:
        """Of its commit record."""
        return keys_task(self.chunk)


def import_keys(task: ImportTask) -> int:
    """Write a chunk of keys; return its rows."""
    segment = Segment(task.segment)
    keys = _encoded(segment, task.memmaps, *segment.chunk_range(task.chunk))
    return SegmentWriter(segment).write_keys(task.chunk, keys)


def write_segment(writer: SegmentWriter, memmaps: Memmaps, job: Job) -> tuple[int, int, float]:
    """Write what isn't there; return chunks written, chunks kept, keys per second."""
    segment = writer.segment
    if writer.lacks(DOCUMENTS_TASK):
        _write_documents(writer, memmaps, job.reporter)
    ranges = map(segment.chunk_range, range(segment.chunks))
    tasks = [ImportTask(segment.root, memmaps, chunk, end - begin) for chunk, (begin, end) in enumerate(ranges)]
    stage = Stage("keys", segment.commits, tasks, import_keys)
    require_room(segment.root, key_bytes(segment, len(stage.missing)), f"{segment.rows:,} keys")
    writer.lay_out_keys()
    if writer.lacks(SAMPLES_TASK):
        _write_samples(writer, memmaps)
    started = time.perf_counter()
    written = stage.resume(job)
    speed = sum(task.rows for task in written) / (time.perf_counter() - started)
    return len(written), segment.chunks - len(written), speed


def _write_documents(writer: SegmentWriter, memmaps: Memmaps, reporter: Reporter) -> None:
    """Write the values, and the one document that they are; nothing is held out."""
    plan, digest = writer.segment.plan, hashlib.sha256()
    dtype = plan.value_dtype
    with writer.task(DOCUMENTS_TASK) as task:
        with (
            task.appending(values=memmaps.rows, heldout=0) as (stored, _),
            reporter.bar("values", memmaps.rows, "tokens") as advance,
        ):
            for begin in range(0, memmaps.rows, VALUE_CHUNK_ROWS):
                values = read_values(memmaps, begin, plan.model.vocabulary).astype(dtype)
                digest.update(values.astype(dtype.newbyteorder("<")).tobytes())
                stored.append(values)
                advance(len(values))
        table = single_document(str(memmaps.keys.path), memmaps.rows, digest.digest())
        write_table(task.file(DOCUMENTS_FILE), table)


def _write_samples(writer: SegmentWriter, memmaps: Memmaps) -> None:
    """Write the int8 scales, and no queries: what was held out of the other toolkit's text isn't known."""
    with writer.task(SAMPLES_TASK) as task:
        if writer.segment.plan.key_dtype == "int8":
            starts = np.unique(np.linspace(0, max(0, memmaps.rows - _SCALE_ROWS), _SCALE_BLOCKS).astype(np.int64))
            blocks = [memmaps.keys.read(int(s), min(int(s) + _SCALE_ROWS, memmaps.rows)) for s in starts]
            task.write_whole(key_scales=scales_of(np.concatenate(blocks).astype(np.float32)))
        task.write_queries(np.empty(0, np.int64), np.empty((0, writer.segment.dimension), np.float32))


def _encoded(segment: Segment, memmaps: Memmaps, begin: int, end: int) -> Any:
    keys = memmaps.keys.read(begin, end).astype(np.float32)
    try:
        return segment.codec.encode(keys)
    except NumericsError as error:
        row = begin + int(np.argmin(np.isfinite(keys).all(axis=1) & (np.abs(keys) < 65504).all(axis=1)))
        raise NumericsError(
            f"{memmaps.keys.path}, row {row:,}: {error}; check {option('dim')} and {option('key_type')}, or store them "
            f"as {option('key_dtype', 'int8')}"
        ) from error
