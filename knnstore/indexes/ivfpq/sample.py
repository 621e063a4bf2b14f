"""The training sample: seeded, in blocks of contiguous rows spread over the whole store, gathered by all workers.

Its rows depend only on the plan and the store. Each task reads the rows of some chunks and writes them to its own file;
the training reads the files in order. The bytes are therefore the same whichever worker reads a part, and an
interrupted run resumes with the missing parts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.commits import CommitLog
from knnstore.datastore.layout import SAMPLE, segment_root
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore, open_segment
from knnstore.errors import CorruptStoreError
from knnstore.files import read_raw, replacing_together
from knnstore.indexes.ivfpq.plan import IvfPqFolder, IvfPqPlan
from knnstore.indexes.ivfpq.train import Sample
from knnstore.records import fingerprint
from knnstore.scheduling import Stage

_BLOCK_ROWS = 256
_FEWEST_CHUNKS = 64
_PART_ROWS = 16_384
_LISTED_PART_ROWS = 2**18  # for keys in list order, where each part needs a pass over all row numbers


@dataclass(frozen=True, slots=True, eq=False)
class SampleTask:
    """Read part ``number`` of an index's sample: rows ``wanted`` of a segment, int64 (n,), ascending."""

    folder: IvfPqFolder
    segment: str
    number: int
    wanted: Int64

    @property
    def name(self) -> str:
        """Return the name of the part and of its commit."""
        return _part(self.number)

    @property
    def rows(self) -> int:
        """Return the number of keys in the part."""
        return len(self.wanted)


def sample_stage(store: Datastore, folder: IvfPqFolder) -> Stage[SampleTask]:
    """Return the stage that gathers the parts of a plan's sample, in order; a part has the rows of whole chunks."""
    chosen = choose_rows(store, folder.plan.train_rows, folder.plan.seed)
    parts = [
        (segment, part) for segment, rows in zip(store.segments, chosen, strict=True) for part in _parts(segment, rows)
    ]
    tasks = [
        SampleTask(folder.absolute(), segment.root.name, number, part) for number, (segment, part) in enumerate(parts)
    ]
    return Stage("sample", _sample_commits(folder), tasks, gather_part)


def _sample_commits(folder: IvfPqFolder) -> CommitLog:
    """Return the records of the parts, which are removed with the parts."""
    root = folder.runs(SAMPLE)
    return CommitLog(root / "commits", root, fingerprint(folder.plan))


def gather_part(task: SampleTask) -> int:
    """Read a part and write its keys as stored; return the number of keys."""
    segment = open_segment(segment_root(task.folder.store, task.segment))
    keys = np.empty((task.rows, segment.dimension), segment.codec.stored)
    for places, block in segment.find_keys(task.wanted):
        keys[places] = block
    log = _sample_commits(task.folder)
    file = log.root / task.name
    with replacing_together([file]) as (opened,):
        opened.write(keys.data)
    log.commit(task.name, [file], segment=task.segment, rows=task.rows)
    return task.rows


def load_sample(store: Datastore, folder: IvfPqFolder, parts: int, advance: Callable[[int], None]) -> Sample:
    """Return the sample from its written parts; ``advance`` is called with the number of keys.

    Raises CorruptStoreError for a damaged part.
    """
    segments, log = store.segments, _sample_commits(folder)
    names = [segment.root.name for segment in segments]
    stored = np.empty((folder.plan.train_rows, segments[0].dimension), segments[0].codec.stored)
    counts, filled = np.zeros(len(segments), np.int64), 0
    for part in map(_part, range(parts)):
        facts = log.require(part).facts
        if damage := log.damage(part):
            log.forget(part)
            raise CorruptStoreError(f"{damage}: run the same command again, which reads these keys again")
        rows = int(facts["rows"])
        read = np.frombuffer(read_raw(log.root / part), stored.dtype)
        stored[filled : filled + rows] = read.reshape(rows, stored.shape[1])
        counts[names.index(facts["segment"])] += rows
        filled += rows
        advance(rows)
    scales = [segment.codec.scales for segment in segments]
    every = None if scales[0] is None else np.stack([each for each in scales if each is not None])
    return Sample(stored, every, np.cumsum(counts))


def choose_rows(store: Datastore, count: int, seed: int) -> list[Int64]:
    """Choose ``count`` rows that aren't hidden, in blocks from evenly spread chunks; int64, ascending, per segment."""
    segments = store.segments
    chunks = [(number, chunk) for number, segment in enumerate(segments) for chunk in range(segment.chunks)]
    sizes = np.array([len(_live_rows(store, number, chunk)) for number, chunk in chunks])
    generator = np.random.default_rng(seed)
    quotas = _quotas(sizes, count, generator)
    chosen: list[list[Int64]] = [[np.empty(0, np.int64)] for _ in segments]
    for (number, chunk), quota in zip(chunks, quotas, strict=True):
        if quota:
            live = _live_rows(store, number, chunk)
            first = segments[number].chunk_range(chunk)[0]
            chosen[number].append(first + live[_blocks(len(live), int(quota), generator)])
    return [np.concatenate(rows) for rows in chosen]


def rows_read(store: Datastore, plan: IvfPqPlan) -> int:
    """Return the number of keys that must be read for a plan's sample: all keys of the chunks it is drawn from."""
    total = 0
    for segment, rows in zip(store.segments, choose_rows(store, plan.train_rows, plan.seed), strict=True):
        chunks = len(np.unique(rows // segment.plan.chunk_rows))
        total += min(chunks * segment.plan.chunk_rows, segment.rows)
    return total


def _part(number: int) -> str:
    return f"part-{number:06d}"


def _parts(segment: Segment, rows: Int64) -> Iterator[Int64]:
    """Yield the rows of a segment, ascending, in parts that begin with a chunk, so that no chunk is read twice."""
    most = _PART_ROWS if segment.order.lists is None else _LISTED_PART_ROWS
    begins = np.flatnonzero(np.diff(rows // segment.plan.chunk_rows, prepend=-1))
    cuts = begins[np.diff(begins // most, prepend=0) > 0]
    yield from (part for part in np.split(rows, cuts) if len(part))


def _quotas(sizes: Int64, count: int, generator: np.random.Generator) -> Int64:
    """Return the rows to take from each chunk: at least 64 chunks, or enough for twice the sample, evenly spread."""
    wanted = max(_FEWEST_CHUNKS, -(-2 * count // int(sizes.max())))
    step = max(1.0, len(sizes) / wanted)
    spread = (np.arange(0, len(sizes), step) + generator.random() * (step - 1)).astype(np.int64)
    chosen = np.unique(np.minimum(spread, len(sizes) - 1))
    if sizes[chosen].sum() < count:
        chosen = np.arange(len(sizes))
    bounds = np.concatenate([[0], np.cumsum(sizes[chosen])]) * count // int(sizes[chosen].sum())
    quotas = np.zeros(len(sizes), np.int64)
    quotas[chosen] = np.diff(bounds)
    return quotas


def _blocks(rows: int, count: int, generator: np.random.Generator) -> Int64:
    """Choose ``count`` of ``rows`` row numbers, in blocks of contiguous ones."""
    blocks = -(-rows // _BLOCK_ROWS)
    order = generator.permutation(blocks)
    members = (order[:, None] * _BLOCK_ROWS + np.arange(_BLOCK_ROWS)).ravel()
    return np.sort(members[members < rows][:count])


def _live_rows(store: Datastore, segment: int, chunk: int) -> Int64:
    """Return the places within a chunk of the rows that aren't hidden."""
    begin, end = store.segments[segment].chunk_range(chunk)
    live = store.hidden[segment].outside(begin, end)
    return np.arange(end - begin) if live is None else live - begin
