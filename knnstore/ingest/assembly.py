"""Tokenised parts -> the segment's documents, values and held-out tokens. Streams; one pass over the ids."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.atomic import read_raw, replacing_path, storage_errors
from knnstore.datastore.appending import ChunkWriter
from knnstore.datastore.arrays import create_array
from knnstore.datastore.documents import DOCUMENTS_SCHEMA, HELDOUT_TOKENS, VALUE_CHUNK_ROWS
from knnstore.datastore.segment import DOCUMENTS_FILE, DOCUMENTS_TASK, Segment
from knnstore.datastore.sources import write_sources
from knnstore.holdout import Int64
from knnstore.ingest.tasks import part_sources, part_table, part_tokens
from knnstore.objects.path import ObjectPath


def assemble(segment: Segment, parts: int, choose: Callable[[Any], Int64], heldout_bytes: Any) -> None:
    """Write documents.parquet, values and heldout, and commit them.

    ``choose(table)`` says how many tokens at the end of each document are held out: int64 (documents,).
    ``heldout_bytes(texts)`` gives the UTF-8 bytes of lists of token ids: needed where only the end of a document is
    held out.
    """
    table = pa.concat_tables(
        pq.read_table(pa.BufferReader(read_raw(part_table(segment.root, part)))) for part in range(parts)
    )
    tokens = table.column("tokens").to_numpy()
    heldout = choose(table)
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
    sizes = np.where(heldout == tokens, table.column("bytes").to_numpy(), 0) * (heldout > 0)
    if ends:
        sizes[(heldout > 0) & (heldout < tokens)] = heldout_bytes(tuple(ends))
    files += [*writer.finish(), *heldout_writer.finish()]
    if segment.plan.key.task == "seq2seq":
        files += write_sources(
            segment, table.column("source_tokens").to_numpy(), _memory_maps(segment, parts, part_sources)
        )
    files.append(_write_documents(segment, table, tokens - heldout, heldout, sizes))
    segment.commits.commit(DOCUMENTS_TASK, files)


def _write_documents(segment: Segment, table: Any, stored: Any, heldout: Any, heldout_bytes: Any) -> Path:
    columns = {name: table.column(name) for name in ("path", "record", "id", "bytes", "sha256")}
    columns |= {
        "first_row": np.cumsum(stored) - stored,
        "tokens": stored,
        "heldout_first": np.cumsum(heldout) - heldout,
        "heldout_tokens": heldout,
        "heldout_bytes": heldout_bytes,
    }
    path = segment.root / DOCUMENTS_FILE
    with storage_errors("write", path), replacing_path(path) as aside:
        pq.write_table(pa.table(columns).cast(DOCUMENTS_SCHEMA), aside, compression="zstd")
    return path


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
