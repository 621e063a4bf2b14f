"""Tokenised parts -> the segment's documents, values and held-out tokens. Streams; one pass over the ids."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from knnstore.atomic import read_raw
from knnstore.datastore.appending import ChunkWriter
from knnstore.datastore.arrays import create_array
from knnstore.datastore.documents import DOCUMENTS_SCHEMA, HELDOUT_TOKENS, VALUE_CHUNK_ROWS
from knnstore.datastore.segment import DOCUMENTS_FILE, DOCUMENTS_TASK, Segment
from knnstore.datastore.sources import write_sources
from knnstore.datastore.tables import write_tables
from knnstore.errors import CorruptStoreError
from knnstore.holdout import Int64
from knnstore.ingest.tasks import part_sources, part_table, part_tokens, tokens_task
from knnstore.objects.path import ObjectPath

Choose = Callable[[Int64, Iterable[Any]], Int64]
"""How many tokens at the end of each document are held out, by the tokens of each (documents,) and the tables of all,
which are read one after the other as they are asked for."""


def assemble(segment: Segment, parts: int, choose: Choose, heldout_bytes: Any) -> None:
    """Write documents.parquet, values and heldout, and commit them. Of a document it holds a few numbers.

    ``heldout_bytes(texts)`` gives the UTF-8 bytes of lists of token ids: needed where only the end of a document is
    held out.
    """
    for part in range(parts):
        if damage := segment.commits.damage(tokens_task(part)):
            segment.commits.forget(tokens_task(part))
            raise CorruptStoreError(f"{damage}: run the same command again, which tokenises that part anew")
    tokens, size, source_tokens = _numbers(segment, parts)
    heldout = choose(tokens, _tables(segment, parts))
    stored_tokens, heldout_tokens = int((tokens - heldout).sum()), int(heldout.sum())
    dtype = segment.plan.value_dtype
    files = create_array(segment.array_path("values"), (stored_tokens,), VALUE_CHUNK_ROWS, dtype, "values")
    files += create_array(segment.array_path("heldout"), (heldout_tokens,), HELDOUT_TOKENS, dtype, "values")
    ends = []
    writer = ChunkWriter(segment.array_path("values"), VALUE_CHUNK_ROWS)
    heldout_writer = ChunkWriter(segment.array_path("heldout"), HELDOUT_TOKENS)
    for keep, end, whole in _split(_memory_maps(segment, parts, part_tokens), tokens, heldout):
        writer.write(keep)
        heldout_writer.write(end)
        if len(end) and not whole:
            ends.append(tuple(end.tolist()))
    sizes = np.where(heldout == tokens, size, 0) * (heldout > 0)
    if ends:
        sizes[(heldout > 0) & (heldout < tokens)] = heldout_bytes(tuple(ends))
    files += [*writer.finish(), *heldout_writer.finish()]
    if segment.plan.key.task == "seq2seq":
        files += write_sources(segment, source_tokens, _memory_maps(segment, parts, part_sources))
    stored = tokens - heldout
    columns = {
        "first_row": np.cumsum(stored) - stored,
        "tokens": stored,
        "heldout_first": np.cumsum(heldout) - heldout,
        "heldout_tokens": heldout,
        "heldout_bytes": sizes,
    }
    files.append(segment.root / DOCUMENTS_FILE)
    write_tables(files[-1], _documents(_tables(segment, parts), columns), DOCUMENTS_SCHEMA)
    segment.commits.commit(DOCUMENTS_TASK, files)


def _tables(segment: Segment, parts: int) -> Iterator[Any]:
    """The documents of each part."""
    return (pq.read_table(pa.BufferReader(read_raw(part_table(segment.root, part)))) for part in range(parts))


def _numbers(segment: Segment, parts: int) -> tuple[Int64, Int64, Int64]:
    """Of all documents the tokens, the UTF-8 bytes of their texts, and the tokens of their sources (0 if none)."""
    names = ("tokens", "bytes", "source_tokens")
    found = [[pc.fill_null(table.column(name), 0).to_numpy() for name in names] for table in _tables(segment, parts)]
    tokens, size, source_tokens = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return tokens, size, source_tokens


def _documents(tables: Iterable[Any], columns: Mapping[str, Int64]) -> Iterator[Any]:
    """The rows of documents.parquet, in as many pieces as there are tables of what the documents are."""
    begin = 0
    for table in tables:
        end = begin + len(table)
        named = {name: table.column(name) for name in ("path", "record", "id", "bytes", "sha256")}
        yield pa.table(named | {name: column[begin:end] for name, column in columns.items()})
        begin = end


def _memory_maps(segment: Segment, parts: int, file: Callable[[Path, int], Path]) -> Iterator[Any]:
    """The token ids of each part, in that file of it."""
    for part in range(parts):
        path = file(segment.root, part)
        if isinstance(path, ObjectPath):
            yield np.frombuffer(path.read_bytes(), segment.plan.value_dtype)
        elif path.stat().st_size:
            yield np.memmap(path, segment.plan.value_dtype, mode="r")


def _split(maps: Iterator[Any], tokens: Any, heldout: Any) -> Iterator[tuple[Any, Any, bool]]:
    """Runs of ids: what is stored up to the next held-out end, that end, and whether it is a whole document."""
    ends = np.cumsum(tokens)
    cuts = iter([(int(ends[i] - heldout[i]), int(ends[i]), heldout[i] == tokens[i]) for i in np.flatnonzero(heldout)])
    cut = next(cuts, None)
    begin = 0
    for ids in maps:
        position, stop = begin, begin + len(ids)
        while cut is not None and cut[1] <= stop:
            yield ids[position - begin : cut[0] - begin], ids[cut[0] - begin : cut[1] - begin], bool(cut[2])
            position, cut = cut[1], next(cuts, None)
        yield ids[position - begin :], ids[:0], False
        begin = stop
