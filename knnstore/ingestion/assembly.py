"""Assemble a segment's documents, values and held-out tokens from tokenised parts.

Everything is streamed: one pass over the token ids chooses what is held out, and another writes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from knnstore.arrays import Int64
from knnstore.datastore.documents import DOCUMENTS_SCHEMA, digests_of
from knnstore.datastore.layout import DOCUMENTS_FILE
from knnstore.datastore.overlaps import find_windows
from knnstore.datastore.rowranges import RowRanges
from knnstore.datastore.segment import DOCUMENTS_TASK, Segment
from knnstore.datastore.segmentwriter import SegmentWriter, TaskWriter
from knnstore.datastore.store import Datastore
from knnstore.datastore.tables import write_tables
from knnstore.datastore.takedowns import Digests
from knnstore.errors import CorruptStoreError
from knnstore.files import files_of, read_raw
from knnstore.holdout import Repeats
from knnstore.ingestion.copies import first_of_each
from knnstore.ingestion.tasks import part_sources, part_table, part_tokens, tokens_task
from knnstore.overlap import LENGTH, Shingles, covered, window_starts

Choose = Callable[[Int64, Iterable[Any], Repeats | None], Int64]
"""Returns the number of tokens to hold out at the end of each document, int64 (documents,).

Arguments: the number of tokens per document (documents,), the tables of all parts, read lazily, and a function that
returns how much of some documents is repeated elsewhere (None to ignore repeats).
"""


def assemble(segment: Segment, parts: int, choose: Choose, heldout_bytes: Any, store: Datastore | None = None) -> None:
    """Write documents.parquet, values and heldout, and commit them. Holds a few numbers per document in memory.

    If the plan is ``distinct``, only the first of several documents with the same text is kept.
    ``heldout_bytes(texts)`` returns the UTF-8 bytes of lists of token ids, for documents of which only the end is held
    out. ``store``: the store that the segment is added to.
    """
    for part in range(parts):
        if damage := segment.commits.damage(tokens_task(part)):
            segment.commits.forget(tokens_task(part))
            raise CorruptStoreError(f"{damage}: run the same command again, which tokenises that part again")
    reading = _Parts(segment, parts)
    repeats = partial(_repeated_tokens, reading, store) if segment.plan.distinct else None
    heldout = choose(reading.tokens, reading.tables(), repeats)
    with SegmentWriter(segment).task(DOCUMENTS_TASK, copies=reading.copies) as task:
        columns = _write_tokens(task, reading, heldout, heldout_bytes)
        if segment.plan.key.task == "seq2seq":
            task.write_sources(reading.source_tokens, reading.source_ids())
        write_tables(task.file(DOCUMENTS_FILE), _documents(reading.tables(), columns), DOCUMENTS_SCHEMA)


def _write_tokens(task: TaskWriter, reading: "_Parts", heldout: Int64, heldout_bytes: Any) -> dict[str, Int64]:
    """Write values and held-out tokens; return their columns of documents.parquet."""
    tokens, ends = reading.tokens, []
    stored = tokens - heldout
    with task.appending(values=int(stored.sum()), heldout=int(heldout.sum())) as (values, heldout_values):
        for keep, end, whole in _split(reading.ids(), tokens, heldout):
            values.append(keep)
            heldout_values.append(end)
            if len(end) and not whole:
                ends.append(tuple(end.tolist()))
    sizes = np.where(heldout == tokens, reading.bytes, 0) * (heldout > 0)
    if ends:
        sizes[(heldout > 0) & (heldout < tokens)] = heldout_bytes(tuple(ends))
    return {
        "first_row": np.cumsum(stored) - stored,
        "tokens": stored,
        "heldout_first": np.cumsum(heldout) - heldout,
        "heldout_tokens": heldout,
        "heldout_bytes": sizes,
    }


class _Parts:
    """The documents of all parts, without duplicates if the plan leaves them out.

    ``tokens``, ``bytes`` and ``source_tokens`` (0 without a source): int64 (documents,). ``copies``: the number of
    documents left out.
    """

    def __init__(self, segment: Segment, parts: int) -> None:
        self._segment, self._parts = segment, parts
        names = ("tokens", "bytes", "source_tokens")
        columns = [[pc.fill_null(table.column(name), 0).to_numpy() for name in names] for table in self._every()]
        self._all_tokens, size, self._all_sources = (np.concatenate(column) for column in zip(*columns, strict=True))
        self._kept = np.ones(len(size), np.bool_)
        if segment.plan.distinct:
            self._kept = first_of_each(self._digests(len(size)))
        self.copies = int((~self._kept).sum())
        self.tokens, self.bytes = self._all_tokens[self._kept], size[self._kept]
        self.source_tokens = self._all_sources[self._kept]

    def tables(self) -> Iterator[Any]:
        """Yield each part's table of documents, of ``PART_SCHEMA``."""
        begin = 0
        for table in self._every():
            yield table.filter(pa.array(self._kept[begin : begin + len(table)])) if self.copies else table
            begin += len(table)

    def ids(self) -> Iterator[Any]:
        """Yield the documents' token ids, in pieces of whole documents."""
        return self._pieces(part_tokens, self._all_tokens)

    def source_ids(self) -> Iterator[Any]:
        """Yield the token ids of the sources, for pairs of texts."""
        return self._pieces(part_sources, self._all_sources)

    def _pieces(self, file: Callable[[Path, int], Path], tokens: Int64) -> Iterator[Any]:
        kept = RowRanges.of_documents(np.cumsum(tokens) - tokens, tokens, np.flatnonzero(self._kept))
        begin = 0
        for ids in _memory_maps(self._segment, self._parts, file):
            end = begin + len(ids)
            first, last = np.searchsorted(kept.ends, begin, "right"), np.searchsorted(kept.begins, end)
            for piece in range(int(first), int(last)):
                yield ids[max(kept.begins[piece] - begin, 0) : kept.ends[piece] - begin]
            begin = end

    def _digests(self, count: int) -> Digests:
        digests, begin = np.empty(count, "S32"), 0
        for table in self._every():
            digests[begin : begin + len(table)] = digests_of(table)
            begin += len(table)
        return digests

    def _every(self) -> Iterator[Any]:
        root = self._segment.root
        return (pq.read_table(pa.BufferReader(read_raw(part_table(root, part)))) for part in range(self._parts))


def _repeated_tokens(reading: _Parts, store: Datastore | None, documents: Int64) -> Int64:
    """Return how many tokens of the given documents are in runs that another document or the store has.

    ``documents``: ascending. The result is int64 (documents,). Needs one pass over all tokens, and holds the tokens of
    the given documents in memory.
    """
    tokens, ends = reading.tokens, np.cumsum(reading.tokens)
    wanted = np.zeros_like(tokens)
    wanted[documents] = tokens[documents]
    ids = np.concatenate([end for _, end, _ in _split(reading.ids(), tokens, wanted)])
    last = np.cumsum(tokens[documents])
    starts = window_starts(last - tokens[documents], tokens[documents], 0, len(ids))
    windows = Shingles(ids, starts)
    # every window occurs in its own document; a window that occurs in a second one is repeated
    lowest, highest = np.full(windows.groups, len(tokens)), np.full(windows.groups, -1)
    begin = 0
    for piece in reading.ids():
        for places, groups in windows.find(piece):
            document = np.searchsorted(ends, places + begin, side="right")
            whole = places + begin + LENGTH <= ends[document]
            np.minimum.at(lowest, groups[whole], document[whole])
            np.maximum.at(highest, groups[whole], document[whole])
        begin += len(piece)
    repeated = lowest != highest
    for segment, hidden in zip(store.segments, store.hidden, strict=True) if store else ():
        for _, groups in find_windows(windows, segment, hidden):
            repeated[groups] = True
    shared = np.cumsum(np.pad(covered(starts[repeated[windows.group]], len(ids)), (1, 0)), dtype=np.int64)
    counts: Int64 = shared[last] - shared[last - tokens[documents]]
    return counts


def _documents(tables: Iterable[Any], columns: Mapping[str, Int64]) -> Iterator[Any]:
    """Yield the rows of documents.parquet, one piece per table in ``tables``."""
    begin = 0
    for table in tables:
        end = begin + len(table)
        named = {name: table.column(name) for name in ("path", "record", "id", "bytes", "sha256")}
        yield pa.table(named | {name: column[begin:end] for name, column in columns.items()})
        begin = end


def _memory_maps(segment: Segment, parts: int, file: Callable[[Path, int], Path]) -> Iterator[Any]:
    """Yield the token ids of each part, from the given file of it."""
    for part in range(parts):
        yield np.frombuffer(files_of(segment.root).load(file(segment.root, part)), segment.plan.value_dtype)


def _split(maps: Iterator[Any], tokens: Any, heldout: Any) -> Iterator[tuple[Any, Any, bool]]:
    """Yield runs of ids: the stored ids up to the next held-out end, that end, and whether it is a whole document."""
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
