"""A new segment out of documents of others: keys, tokens and provenance are copied, and no LM runs.

A task copies a whole chunk of keys. What is to be copied lies in the temporary folder ``copy/`` of the new segment:
``kept.parquet``, a row a document, which tells tasks from where each row of theirs comes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.datastore.arrays import read_rows
from knnstore.datastore.chunkwriter import ChunkWriter
from knnstore.datastore.documents import DOCUMENTS_SCHEMA
from knnstore.datastore.rowranges import Bool, Int64, RowRanges
from knnstore.datastore.segment import DOCUMENTS_FILE, DOCUMENTS_TASK, SAMPLES_TASK, Segment, keys_task
from knnstore.datastore.segmentwriter import SegmentWriter, TaskWriter
from knnstore.datastore.store import open_segment
from knnstore.datastore.tables import write_table
from knnstore.errors import CorruptStoreError
from knnstore.files import read_raw
from knnstore.scheduling import Stage

FOLDER = "copy"
_KEPT = pa.schema([("source", pa.int32()), ("document", pa.int64()), ("rows", pa.bool_()), ("heldout", pa.bool_())])
_BLOCK = 2**22
_DECODED = 16384


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Documents of one segment, by ascending number, and whether their stored and held-out parts are wanted."""

    segment: Segment
    documents: Int64
    rows: Bool
    heldout: Bool

    @classmethod
    def whole(cls, segment: Segment, documents: Int64) -> "Source":
        """Documents with all their parts."""
        every = np.ones(len(documents), np.bool_)
        return cls(segment, documents, every, every)

    @property
    def tokens(self) -> Int64:
        """Rows of each document: int64 (documents,)."""
        return self.segment.documents.tokens[self.documents] * self.rows

    @property
    def heldout_tokens(self) -> Int64:
        """Held-out tokens of each document: int64 (documents,)."""
        return self.segment.documents.heldout_tokens[self.documents] * self.heldout


@dataclass(frozen=True, slots=True)
class CopyTask:
    """A chunk of ``rows`` keys of the segment at ``target``; ``sources``: folders of those in ``kept.parquet``."""

    target: Path
    sources: tuple[Path, ...]
    chunk: int
    rows: int

    @property
    def name(self) -> str:
        """Of its commit record."""
        return keys_task(self.chunk)


def copy_tables(writer: SegmentWriter, sources: Sequence[Source]) -> None:
    """Write all of a new segment but its keys, task by task; what is done already is left."""
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
                # the scales that all sources have, or else the larger one of each dimension, which clips nothing
                scales = [scales for source in sources if (scales := source.segment.codec.scales) is not None]
                task.write_whole(key_scales=np.max(scales, axis=0).astype(np.float32))
            _copy_queries(task, sources)


def copy_stage(segment: Segment, sources: Sequence[Source]) -> Stage[CopyTask]:
    """The stage that copies the keys of a segment whose documents are there."""
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
        here = np.flatnonzero(owner == number)
        order = np.argsort(rows[here])
        for places, keys in source.find_keys(rows[here][order]):
            block[here[order[places]]] = recoded(keys, source, segment)
    return SegmentWriter(segment).write_keys(task.chunk, block)


def recoded(stored: np.ndarray[Any, Any], source: Segment, target: Segment) -> np.ndarray[Any, Any]:
    """Keys (n, d) as the target stores them: the same bytes, unless the two have other scales."""
    ours, theirs = target.codec.scales, source.codec.scales
    if ours is None or theirs is None or np.array_equal(ours, theirs):
        return stored
    result = np.empty_like(stored)
    for begin in range(0, len(stored), _DECODED):
        block = slice(begin, begin + _DECODED)
        result[block] = target.codec.encode(source.codec.decode(stored[block]))
    return result


class Origins:
    """From where the rows of a copied segment come, and the other way round."""

    def __init__(self, segment: Segment, sources: Sequence[Segment]) -> None:
        self.sources = sources
        self._table = segment.documents
        kept = _read_kept(segment.root)
        self._owner: Int64 = kept.column("source").to_numpy().astype(np.int64)
        self._document: Int64 = kept.column("document").to_numpy()
        self._rows: Bool = kept.column("rows").to_numpy(zero_copy_only=False)
        if len(self._owner) != len(self._table):
            raise CorruptStoreError(f"{segment.root} doesn't hold the documents that were to be copied: remove it")

    def of(self, rows: Int64) -> tuple[Int64, Int64]:
        """The source of each of the copy's rows, by its number, and its row there: int64 (n,) each."""
        document = self._table.locate(rows)
        owner, old = self._owner[document], np.empty(len(rows), np.int64)
        for number, source in enumerate(self.sources):
            here = np.flatnonzero(owner == number)
            first = source.documents.first_row[self._document[document[here]]]
            old[here] = first + rows[here] - self._table.first_row[document[here]]
        return owner, old

    def documents(self, source: int) -> Int64:
        """The documents of a source whose rows are copied: int64 (n,), ascending."""
        return np.sort(self._document[(self._owner == source) & self._rows])

    def copied(self, source: int, rows: Int64) -> Int64:
        """The copy's rows of rows of a source, −1 where it has none: int64 (n,)."""
        mine = np.flatnonzero((self._owner == source) & self._rows)
        table = self.sources[source].documents
        place = np.full(len(table), -1, np.int64)
        place[self._document[mine]] = mine
        document = table.locate(rows)
        copy = place[document]
        return np.where(copy < 0, -1, self._table.first_row[copy] + rows - table.first_row[document])


def write_kept(segment: Path, sources: Sequence[Source]) -> None:
    """Say what is to be copied."""
    columns = {
        "source": np.repeat(np.arange(len(sources), dtype=np.int32), [len(source.documents) for source in sources]),
        "document": np.concatenate([source.documents for source in sources]),
        "rows": np.concatenate([source.rows for source in sources]),
        "heldout": np.concatenate([source.heldout for source in sources]),
    }
    path = segment / FOLDER / "kept.parquet"
    write_table(path, pa.table(columns, schema=_KEPT))


def _read_kept(segment: Path) -> Any:
    path = segment / FOLDER / "kept.parquet"
    try:
        return pq.read_table(pa.BufferReader(read_raw(path)), schema=_KEPT)
    except (OSError, pa.ArrowException) as error:
        raise CorruptStoreError(f"{path} can't be read: run the same command again ({error})") from error


def _documents(sources: Sequence[Source]) -> Any:
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


def _copy_values(values: ChunkWriter, sources: Sequence[Source]) -> None:
    for source in sources:
        table = source.segment.documents
        wanted = RowRanges.of_documents(table.first_row, table.tokens, source.documents[source.rows])
        for block in _ranged(source.segment.array_path("values"), source.segment.rows, wanted):
            values.append(block)


def _copy_heldout(heldout: ChunkWriter, sources: Sequence[Source]) -> None:
    for source in sources:
        total = int(source.segment.documents.heldout_tokens.sum())
        for block in _ranged(source.segment.array_path("heldout"), total, _heldout_ranges(source)):
            heldout.append(block)


def _heldout_ranges(source: Source) -> RowRanges:
    table = source.segment.documents
    return RowRanges.of_documents(table.heldout_first, table.heldout_tokens, source.documents[source.heldout])


def _sources_of(sources: Sequence[Source]) -> Iterator[np.ndarray[Any, Any]]:
    """What the copied documents are translations of, held out or not, block by block."""
    for source in sources:
        offsets = source.segment.source_offsets
        wanted = RowRanges.of_documents(offsets[:-1], np.diff(offsets), source.documents)
        yield from _ranged(source.segment.array_path("sources"), int(offsets[-1]), wanted)


def _ranged(path: Path, rows: int, wanted: RowRanges) -> Iterator[np.ndarray[Any, Any]]:
    """The wanted rows of an array, block by block."""
    for begin in range(0, rows, _BLOCK):
        end = min(begin + _BLOCK, rows)
        chosen = wanted.contains(np.arange(begin, end))
        if chosen.any():
            yield read_rows(path, begin, end)[chosen]


def _copy_queries(task: TaskWriter, sources: Sequence[Source]) -> None:
    tokens, queries, first = [], [], 0
    for source in sources:
        wanted, old = _heldout_ranges(source), source.segment.query_tokens()
        mine = wanted.contains(old)
        lengths = wanted.ends - wanted.begins
        within = np.searchsorted(wanted.begins, old[mine], side="right") - 1
        tokens.append(first + (np.cumsum(lengths) - lengths - wanted.begins)[within] + old[mine])
        queries.append(source.segment.queries()[mine])
        first += wanted.rows
    task.write_queries(np.concatenate(tokens), np.concatenate(queries))
