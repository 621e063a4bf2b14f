"""Make a new segment from documents of other segments: copy keys, tokens and provenance without running an LM.

Each task copies one chunk of keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from knnstore.datastore.arrays import read_rows
from knnstore.datastore.chunkwriter import ChunkWriter
from knnstore.datastore.documents import DOCUMENTS_SCHEMA
from knnstore.datastore.layout import DOCUMENTS_FILE
from knnstore.datastore.origins import KeptDocuments, Origins, recoded
from knnstore.datastore.rowranges import RowRanges
from knnstore.datastore.segment import DOCUMENTS_TASK, SAMPLES_TASK, Segment, keys_task
from knnstore.datastore.segmentwriter import SegmentWriter, TaskWriter
from knnstore.datastore.store import open_segment
from knnstore.datastore.tables import write_table
from knnstore.scheduling import Stage

_BLOCK = 2**22


@dataclass(frozen=True, slots=True)
class CopyTask:
    """A chunk of ``rows`` keys of the segment at ``target``; ``sources``: the folders behind ``kept.parquet``."""

    target: Path
    sources: tuple[Path, ...]
    chunk: int
    rows: int

    @property
    def name(self) -> str:
        """Return the name of its commit record."""
        return keys_task(self.chunk)


def copy_tables(writer: SegmentWriter, sources: Sequence[KeptDocuments]) -> None:
    """Write a new segment except for its keys, task by task; finished tasks are skipped."""
    if writer.lacks(DOCUMENTS_TASK):
        with writer.task(DOCUMENTS_TASK) as task:
            write_table(task.file(DOCUMENTS_FILE), _documents(sources))
            with task.appending(values=sum(int(source.tokens.sum()) for source in sources)) as [values]:
                _copy_values(values, sources)
            with task.appending(heldout=sum(int(source.heldout_tokens.sum()) for source in sources)) as [heldout]:
                _copy_heldout(heldout, sources)
            if writer.segment.plan.key.task == "seq2seq":
                offsets = [(s.segment.source_offsets, s.documents) for s in sources]
                tokens = np.concatenate([(ends[1:] - ends[:-1])[documents] for ends, documents in offsets])
                task.write_sources(tokens, _sources_of(sources))
    writer.lay_out_keys()
    if writer.lacks(SAMPLES_TASK):
        with writer.task(SAMPLES_TASK) as task:
            if writer.segment.plan.key_dtype == "int8":
                # the largest scale of each dimension, which clips nothing; equal scales stay as they are
                scales = [scales for source in sources if (scales := source.segment.codec.scales) is not None]
                task.write_whole(key_scales=np.max(scales, axis=0).astype(np.float32))
            _copy_queries(task, sources)


def copy_stage(segment: Segment, sources: Sequence[KeptDocuments]) -> Stage[CopyTask]:
    """Return the stage that copies the keys of a segment whose documents are written."""
    target, folders = segment.root.absolute(), tuple(source.segment.root.absolute() for source in sources)
    ranges = map(segment.chunk_range, range(segment.chunks))
    tasks = [CopyTask(target, folders, chunk, end - begin) for chunk, (begin, end) in enumerate(ranges)]
    return Stage("copy", segment.commits, tasks, copy_chunk)


def copy_chunk(task: CopyTask) -> int:
    """Gather one chunk of keys from its sources, write and commit it; return its rows."""
    segment = Segment(task.target)
    begin, end = segment.chunk_range(task.chunk)
    origins = Origins(segment, [open_segment(path) for path in task.sources])
    block = np.empty((end - begin, segment.dimension), segment.key_dtype)
    owner, rows = origins.of(np.arange(begin, end))
    for number, source in enumerate(origins.sources):
        members = np.flatnonzero(owner == number)
        order = np.argsort(rows[members])
        for places, keys in source.find_keys(rows[members][order]):
            block[members[order[places]]] = recoded(keys, source, segment)
    return SegmentWriter(segment).write_keys(task.chunk, block)


def _documents(sources: Sequence[KeptDocuments]) -> Any:
    names = ("path", "record", "id", "bytes", "sha256")
    old = pa.concat_tables(source.segment.documents.table.select(names).take(source.documents) for source in sources)
    tokens = np.concatenate([source.tokens for source in sources])
    heldout = np.concatenate([source.heldout_tokens for source in sources])
    sizes = np.concatenate([source.segment.documents.heldout_bytes[source.documents] for source in sources])
    columns = {name: old.column(name) for name in names} | {
        "first_row": np.cumsum(tokens) - tokens,
        "tokens": tokens,
        "heldout_first": np.cumsum(heldout) - heldout,
        "heldout_tokens": heldout,
        "heldout_bytes": np.where(heldout > 0, sizes, 0),
    }
    return pa.table(columns).cast(DOCUMENTS_SCHEMA)


def _copy_values(values: ChunkWriter, sources: Sequence[KeptDocuments]) -> None:
    for source in sources:
        table = source.segment.documents
        wanted = RowRanges.of_documents(table.first_row, table.tokens, source.documents[source.rows])
        for block in _ranged(source.segment.array_path("values"), source.segment.rows, wanted):
            values.append(block)


def _copy_heldout(heldout: ChunkWriter, sources: Sequence[KeptDocuments]) -> None:
    for source in sources:
        total = int(source.segment.documents.heldout_tokens.sum())
        for block in _ranged(source.segment.array_path("heldout"), total, _heldout_ranges(source)):
            heldout.append(block)


def _heldout_ranges(source: KeptDocuments) -> RowRanges:
    table = source.segment.documents
    return RowRanges.of_documents(table.heldout_first, table.heldout_tokens, source.documents[source.heldout])


def _sources_of(sources: Sequence[KeptDocuments]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the sources of the copied documents, held out or not, block by block."""
    for source in sources:
        offsets = source.segment.source_offsets
        wanted = RowRanges.of_documents(offsets[:-1], np.diff(offsets), source.documents)
        yield from _ranged(source.segment.array_path("sources"), int(offsets[-1]), wanted)


def _ranged(path: Path, rows: int, wanted: RowRanges) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the wanted rows of an array, block by block."""
    for begin in range(0, rows, _BLOCK):
        end = min(begin + _BLOCK, rows)
        chosen = wanted.contains(np.arange(begin, end))
        if chosen.any():
            yield read_rows(path, begin, end)[chosen]


def _copy_queries(task: TaskWriter, sources: Sequence[KeptDocuments]) -> None:
    tokens, queries, first = [], [], 0
    for source in sources:
        wanted, old = _heldout_ranges(source), source.segment.query_tokens()
        kept = wanted.contains(old)
        lengths = wanted.ends - wanted.begins
        within = np.searchsorted(wanted.begins, old[kept], side="right") - 1
        # position in the copy: all wanted tokens before the query's range, plus its offset within the range
        tokens.append(first + (np.cumsum(lengths) - lengths - wanted.begins)[within] + old[kept])
        queries.append(source.segment.queries()[kept])
        first += wanted.rows
    task.write_queries(np.concatenate(tokens), np.concatenate(queries))
