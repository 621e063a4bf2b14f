"""Measure the time of a build on this machine by running its stages on two chunks of the store's keys.

The quantisers have the planned size but aren't trained, since the cost of assigning and encoding a key doesn't depend
on their values. The code of the build then fills, merges and searches two chunks in a temporary store next to the real
one, on the same disk (elsewhere only if its folder isn't writable). The time of the training is extrapolated from parts
of it: some cells and one sub-quantiser.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.arrays import Float32
from knnstore.datastore.store import Datastore
from knnstore.files import files_of
from knnstore.indexes.check import MOST_CHECK_QUERIES
from knnstore.indexes.compute.stored import decode
from knnstore.indexes.exact import exact_search
from knnstore.indexes.ivfpq.building import fill_lists
from knnstore.indexes.ivfpq.excerpt import make_excerpt
from knnstore.indexes.ivfpq.kmeans import assign_flat, coarse_rows, kmeans
from knnstore.indexes.ivfpq.plan import IvfPqFolder, IvfPqPlan
from knnstore.indexes.ivfpq.quantiser import Quantiser, TrainingErrors, save_quantiser, train_codebooks
from knnstore.indexes.ivfpq.sample import rows_read
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.ivfpq.train import PQ_ROWS, train_axes
from knnstore.indexes.plan import CHECKED_NEIGHBOURS, new_index
from knnstore.planning import BuildRates
from knnstore.progress import Reporter
from knnstore.scheduling import Job

_CHUNKS = 2
_SHARE = 4  # one in this many points of the first k-means is clustered
_CELLS = 3  # number of cells that are clustered


class StageClock(Reporter):
    """Wall time and CPU time of each stage of a job, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def bar(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[float], None]]:
        """See Reporter."""
        started, cpu = time.perf_counter(), time.process_time()
        yield lambda count: None
        self.seconds[stage] = time.perf_counter() - started
        self.cpu[stage] = time.process_time() - cpu


def measure_rates(store: Datastore, plan: IvfPqPlan) -> BuildRates:
    """Measure the rates of a build of ``plan`` on this machine; this takes seconds and leaves no files."""
    start = time.process_time()  # the time to load the libraries, which the build needs too
    read = _reading_seconds(store)
    writable = not files_of(store.root).fetches and os.access(store.root.parent, os.W_OK)
    beside = store.root.parent if writable else None
    with tempfile.TemporaryDirectory(dir=beside, prefix=".calibration-") as folder:
        excerpt = make_excerpt(store, Path(folder) / "excerpt", _CHUNKS)
        try:
            segment = excerpt.segments[0]
            keys, decoding = _timed(lambda: decode(segment.keys(0, segment.rows), segment.codec.scales))
            quantiser, train = _train_in_parts(keys, plan)
            index = new_index(excerpt.root, plan, None)
            index.begin()
            save_quantiser(index, quantiser, TrainingErrors(1.0, None))
            clock = StageClock()
            fill_lists(index, segment, 1, Job(reporter=clock))
            check_key, check_once = _checking_seconds(excerpt, index, keys, quantiser)
        finally:
            excerpt.close()
    rows = len(keys)
    fill = clock.seconds["fill"] / rows + read
    return BuildRates(
        start=start,
        train=train + (read + decoding / rows) * rows_read(store, plan),
        fill=fill,
        merge=clock.seconds["merge"] / rows,
        cpu=(clock.cpu["fill"] + clock.cpu["merge"]) / rows,
        check=check_key + read,
        check_once=check_once,
    )


def _reading_seconds(store: Datastore) -> float:
    """Return the seconds to read a key from the disk, or from the page cache if it is cached."""
    segment = max(store.segments, key=lambda each: each.rows)
    sizes = {path: size for path, size, _ in files_of(segment.root).entries(segment.keys_path / "c")}
    files = sorted(sizes)
    some = files[:: max(1, len(files) // 4)][:4]
    started = time.perf_counter()
    size = sum(len(path.read_bytes()) for path in some)
    return (time.perf_counter() - started) / size * sum(sizes.values()) / segment.rows


def _train_in_parts(keys: Float32, plan: IvfPqPlan) -> tuple[Quantiser, float]:
    """Return untrained quantisers of the planned size, and the expected seconds of their training."""
    generator = np.random.default_rng(plan.seed)

    def some(count: int) -> Float32:
        rows = generator.choice(len(keys), count, replace=count > len(keys))
        return keys[np.sort(rows)]

    points = coarse_rows(plan.train_rows, plan.cells)
    sample = some(max(plan.cells, points // _SHARE))
    cells, coarse = _timed(lambda: kmeans(sample, plan.cells, plan.seed))
    block = some(min(plan.train_rows, 2**14))
    _, assign = _timed(lambda: assign_flat(block, cells))
    members, share = some(max(1, plan.train_rows // plan.cells)), max(1, plan.nlist // plan.cells)
    _, cell = _timed(lambda: [kmeans(members, min(share, len(members)), plan.seed) for _ in range(_CELLS)])
    centroids = some(plan.nlist)
    quantiser = Quantiser(cells, centroids, np.empty((0, 0, 0), np.float32))
    rest = some(min(plan.train_rows, PQ_ROWS))
    lists, assigning = _timed(lambda: quantiser.assign(rest))
    residuals = rest - centroids[lists]
    width = plan.coded_dimension // plan.pq_bytes
    axes, rotating = _timed(lambda: train_axes(plan, residuals))
    codebook, product = _timed(lambda: train_codebooks(residuals[:, :width], 1, plan.seed))
    quantiser = Quantiser(cells, centroids, np.repeat(codebook, plan.pq_bytes, axis=0), axes)
    codes, encode = _timed(lambda: quantiser.encode(rest, lists))
    _, errors = _timed(lambda: quantiser.errors(rest, lists, codes))
    seconds = coarse * points / len(sample) + assign * plan.train_rows / len(block) + cell * plan.cells / _CELLS
    return quantiser, seconds + assigning + rotating + product * plan.pq_bytes + encode + errors


def _checking_seconds(
    excerpt: Datastore, index: IvfPqFolder, keys: Float32, quantiser: Quantiser
) -> tuple[float, float]:
    """Return the seconds of the self-check per key, and those that don't depend on the number of keys."""
    plan, rows = index.plan, len(keys)
    queries = keys[:: max(1, rows // MOST_CHECK_QUERIES)][:MOST_CHECK_QUERIES]
    k = min(CHECKED_NEIGHBOURS, rows)
    _, exact = _timed(lambda: exact_search(excerpt, queries, k, rows=True))
    searcher = Searcher(excerpt, index, checked=False)
    _, joins = _timed(lambda: [searcher.search(queries, k, rows=True, method=way) for way in ("lists", "quantised")])
    codes = searcher.parts[0].codes.rows(0, min(rows, 2**14))
    _, decoding = _timed(lambda: quantiser.decode(codes))
    # lists that any query probes are read and decoded once; ``met`` is their expected share
    met = 1 - np.exp(-len(queries) * plan.nprobe / plan.nlist)
    return exact / rows + float(met) * decoding / len(codes), joins


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
