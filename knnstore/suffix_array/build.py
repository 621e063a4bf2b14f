"""Build the exact-match memory of a store: an external bucket sort of its tokens by the tokens before them.

Contexts are sorted by their last token first, so that a bucket is a range of last tokens. Each bucket is as large as
the memory allows and is sorted by itself; concatenated, the buckets are the order::

    last token    0 … 56     57 … 410    411 … separator
    order         [ sorted ][ sorted    ][ sorted         ]

All reads and writes are sequential, nothing is merged, and the bytes don't depend on the division into ranges.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.arrays import create_array, write_chunk
from knnstore.datastore.chunkwriter import ChunkWriter
from knnstore.datastore.commits import DONE, begin_part
from knnstore.datastore.edits import editing
from knnstore.datastore.layout import SUFFIX_PLAN, SUFFIXES
from knnstore.datastore.mapped import MappedArray
from knnstore.datastore.store import Datastore
from knnstore.diskspace import bytes_below, require_room, telling_need
from knnstore.progress import Reporter
from knnstore.scheduling import Job
from knnstore.sizes import require_memory
from knnstore.suffix_array.contexts import sorted_positions
from knnstore.suffix_array.plan import SuffixFolder, chunk_rows, discard_others, live_documents, suffix_folder
from knnstore.suffix_array.search import Suffixes

# Bytes per position while a range is sorted: positions, words, groups, the order and copies in the sort.
_SORT_BYTES = 80
_BASE_BYTES = 400_000_000
_SMALLEST_RANGE = 2**16
_MORE = 1.05


@dataclass(frozen=True, slots=True)
class SuffixReport:
    """A finished exact-match memory. ``built`` is False if it was finished already."""

    rows: int
    bytes: int
    built: bool


def build_suffixes(store: Datastore, job: Job, *, again: bool = False) -> SuffixReport:
    """Build the exact-match memory, or resume an interrupted build; older ones are removed.

    ``again``: rebuild damaged parts of a finished one.

    Raises ResourceError before any work for too little memory or disk space, LockedError, CorruptStoreError.
    """
    folder = suffix_folder(store)
    require_memory(job.memory, _BASE_BYTES + _SMALLEST_RANGE * _SORT_BYTES)
    most = (job.memory - _BASE_BYTES) // _SORT_BYTES
    with editing(store.root):
        if not again and folder.finished:
            discard_others(store.root, folder.root.name)
            return SuffixReport(folder.plan.rows, folder.plan.bytes, built=False)
        metadata = _prepare(folder, store)
        with telling_need("The remaining arrays of the exact-match memory", lambda: _room(folder)):
            _write_stream(folder, store, job.reporter)
            _write_order(folder, most, job.reporter)
        folder.commits.commit(DONE, [folder.root / SUFFIX_PLAN, *metadata])
        discard_others(store.root, folder.root.name)
    return SuffixReport(folder.plan.rows, folder.plan.bytes, built=True)


def open_suffixes(store: Datastore) -> Suffixes | None:
    """Return the store's exact-match memory, mapped; None if it has none that is complete and up to date."""
    if not (store.root / SUFFIXES).is_dir():
        return None
    folder = suffix_folder(store)
    if not folder.finished:
        return None
    return Suffixes(MappedArray(folder.array("stream")), MappedArray(folder.array("order")), folder.plan.packing)


def _prepare(folder: SuffixFolder, store: Datastore) -> list[Path]:
    """Create the arrays; return the files that describe them."""
    require_room(store.root, _room(folder), "the arrays of the exact-match memory", "remove documents")
    begin_part(folder.root, SUFFIX_PLAN, folder.plan)
    for task in folder.commits.damaged().keys() - {DONE}:  # DONE stays: readers and repairs rely on it
        folder.commits.forget(task)
    plan, files = folder.plan, list[Path]()
    for name, rows, dtype in (("stream", plan.positions, plan.packing.dtype), ("order", plan.rows, plan.order_dtype)):
        files += create_array(folder.array(name), (rows,), chunk_rows(rows), np.dtype(dtype), "none")
    return list(dict.fromkeys(files))


def _room(folder: SuffixFolder) -> int:
    """Return the bytes on disk that are needed beyond those written."""
    return max(0, int(folder.plan.bytes * _MORE) - bytes_below(folder.root))


def _written(folder: SuffixFolder, name: str, rows: int) -> int:
    """Return the number of rows of an array that earlier runs committed, in whole chunks from the first row on."""
    chunks = range(-(-rows // chunk_rows(rows)))
    missing = (chunk for chunk in chunks if folder.commits.find(_task(name, chunk)) is None)
    return min(next(missing, len(chunks)) * chunk_rows(rows), rows)


def _writer(folder: SuffixFolder, name: str, rows: int, written: int, dtype: Any) -> ChunkWriter:
    """Return a writer that writes and commits the chunks of an array after its ``written`` rows."""

    def write(chunk: int, block: Any) -> None:
        file = write_chunk(folder.array(name), chunk, block.astype(dtype))
        folder.commits.commit(_task(name, chunk), [file])

    return ChunkWriter(write, chunk_rows(rows), -(-written // chunk_rows(rows)))


def _task(name: str, chunk: int) -> str:
    return f"{name}-{chunk:05}"


def _write_stream(folder: SuffixFolder, store: Datastore, reporter: Reporter) -> None:
    plan = folder.plan
    position, done = 0, _written(folder, "stream", plan.positions)
    if done == plan.positions:
        return
    writer = _writer(folder, "stream", plan.positions, done, plan.packing.dtype)
    with reporter.bar("stream", plan.positions, "tokens", done) as advance:
        for piece in _pieces(store, plan.packing.separator, plan.packing.dtype):
            fresh = piece[max(done - position, 0) :]
            position += len(piece)
            writer.append(fresh)
            advance(len(fresh))
        writer.finish()


def _pieces(store: Datastore, separator: int, dtype: Any) -> Iterator[Any]:
    """Yield the stream, a chunk of values at a time: tokens, with a separator before each document."""
    for number, segment in enumerate(store.segments):
        begins = segment.documents.first_row[live_documents(store, number)]
        for begin in range(0, segment.rows, chunk_rows(segment.rows)):
            end = min(begin + chunk_rows(segment.rows), segment.rows)
            starts = begins[(begins >= begin) & (begins < end)] - begin
            values = np.insert(segment.values(begin, end).astype(dtype), starts, separator)
            rows = store.hidden[number].outside(begin, end)
            if rows is None:
                yield values
                continue
            kept = np.isin(np.arange(begin, end), rows, assume_unique=True)
            yield values[np.insert(kept, starts, True)]


def _write_order(folder: SuffixFolder, most: int, reporter: Reporter) -> None:
    plan, packing = folder.plan, folder.plan.packing
    stream = MappedArray(folder.array("stream"))
    counts = np.zeros(packing.separator + 1, np.int64)
    for _, before in _tokens(stream, packing.separator):
        counts += np.bincount(before, minlength=len(counts))
    first, done = 0, _written(folder, "order", plan.rows)
    writer = _writer(folder, "order", plan.rows, done, plan.order_dtype)
    with reporter.bar("sort", plan.rows, "tokens", done) as advance:
        for low, high in _ranges(counts, most):
            count = int(counts[low:high].sum())
            if first + count > done:
                picked = [
                    positions[(before >= low) & (before < high)]
                    for positions, before in _tokens(stream, packing.separator)
                ]
                ordered = sorted_positions(stream, np.concatenate(picked), packing)
                fresh = ordered[max(done - first, 0) :]
                writer.append(fresh)
                advance(len(fresh))
            first += count
        writer.finish()


def _tokens(stream: MappedArray, separator: int) -> Iterator[tuple[Any, Any]]:
    """Yield positions of tokens, int64, and the token before each, a chunk of the stream at a time."""
    size, last = chunk_rows(stream.shape[0]), separator
    for begin in range(0, stream.shape[0], size):
        tokens = stream.rows(begin, min(begin + size, stream.shape[0])).astype(np.int64)
        before = np.concatenate([[last], tokens[:-1]])
        last = int(tokens[-1])
        places = np.flatnonzero(tokens != separator)
        yield places + begin, before[places]


def _ranges(counts: Any, most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of tokens ``[low, high)`` that precede at most ``most`` positions in all, or single tokens."""
    low, total = 0, 0
    for token, count in enumerate(counts.tolist()):
        if total and total + count > most:
            yield low, token
            low, total = token, 0
        total += count
    yield low, len(counts)
