"""Cost per key as the store grows by factors of ten: CPU seconds of each stage, memory, and a bulk search.

    python tools/bench.py scale                    1M, 10M and 100M keys of 64 dimensions: half an hour, 25 GB of disk
    python tools/bench.py scale --rows 10000000    100,000, 1M and 10M
    python tools/bench.py scale --quick            200,000 and 20,000
    python tools/bench.py scale --store PATH       only the searches, of an indexed store by tools/make_keys.py

Synthetic int8 keys, indexed and searched under ``--memory`` in a separate process; each store is removed before the
next is made. CPU seconds are used because they are less affected by other work on the machine. The planned peak is that
of ``knnstore index --dry-run``. Queries: k = 1024, nprobe 32, none of them stored. ``--figure`` draws the table.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from make_keys import ClusteredKeys, make_store

from benchmarks.figures import new_figure, require_matplotlib, save
from benchmarks.measuring import Measured, Result, Settings, in_own_process
from knnstore.datastore.store import Datastore, store_path
from knnstore.diskspace import bytes_below
from knnstore.errors import UsageError
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.indexing.plan import dry_run
from knnstore.progress import Reporter
from knnstore.scheduling import Job
from knnstore.sizes import format_size

DIMENSION, K, NPROBE = 64, 1024, 32
STAGES = ("train", "fill", "merge", "check")
COLUMNS = (
    "keys", "lists", *(f"{stage} µs" for stage in STAGES), "µs per key", "peak MB", "planned MB", "written ÷ index",
    "recall", "µs per query", "search peak MB",
)  # fmt: skip


STORE_COLUMNS = (
    "keys", "d", "lists", "bytes per key", "recall", "µs per query", "search peak MB", "one query, ms", "p95 ms"
)  # fmt: skip
_SINGLE = 200


def run(settings: Settings, work: Path) -> Result:
    require_matplotlib(settings)
    if settings.store is not None:
        if settings.figure is not None:
            raise UsageError("--figure draws the cost of building, which --store leaves out: omit one of them")
        return of_store(settings, store_path(str(settings.store)))
    most = settings.size(settings.rows, quick=200_000, full=100_000_000)
    sizes = [most // 10, most] if settings.quick else [most // 100, most // 10, most]
    queries = settings.size(settings.queries, quick=1024, full=20_000)
    table = [_measured(settings, work, rows, queries) for rows in sizes]
    last, before = (dict(zip(COLUMNS, row, strict=True)) for row in (table[-1], table[-2]))
    ratios = {
        "cost_a_key_vs_a_tenth": round(last["µs per key"] / before["µs per key"], 4),
        "fill_and_merge_vs_a_tenth": round(_moving(last) / _moving(before), 4),
        "peak_vs_plan": round(
            max(row[COLUMNS.index("peak MB")] / row[COLUMNS.index("planned MB")] for row in table), 4
        ),
        "peak_vs_promise": round(max(row[COLUMNS.index("peak MB")] for row in table) * 1e6 / settings.memory, 4),
    }
    if settings.figure is not None:
        draw_costs(table, settings)
    about = {"d": DIMENSION, "memory": settings.memory, "k": K, "nprobe": NPROBE, "queries": queries}
    return Result("scale", about, COLUMNS, table, ratios)


def draw_costs(table: list[tuple[Any, ...]], settings: Settings) -> None:
    """Draw a PNG: CPU time per key by stage, and peak memory, as the store grows."""
    assert settings.figure is not None
    columns = dict(zip(COLUMNS, zip(*table, strict=True), strict=True))
    places, below = np.arange(len(table)), np.zeros(len(table))
    figure, left, right = new_figure(f"python tools/bench.py scale: int8 keys of {DIMENSION} dimensions")
    for stage, colour in zip(STAGES, ("#e9c46a", "#2a9d6f", "#4464ad", "#8a6bbf"), strict=True):
        cost = np.array(columns[f"{stage} µs"])
        left.bar(places, cost, 0.6, bottom=below, color=colour, label=stage)
        below += cost
    left.set(title="CPU time per key", ylabel="µs")
    right.bar(places - 0.2, columns["peak MB"], 0.4, color="#2a9d6f", label="peak, building")
    right.bar(places + 0.2, columns["planned MB"], 0.4, color="#a8d5c2", label="planned by --dry-run")
    right.axhline(settings.memory / 1e6, color="#c44536", ls="--", label=f"--memory {format_size(settings.memory)}")
    right.set(title="Memory", ylabel="MB")
    for axes in (left, right):
        axes.set_xticks(places, [f"{rows:,} keys" for rows in columns["keys"]])
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize=8)
    save(figure, settings.figure)


def _moving(row: dict[str, Any]) -> float:
    return float(row["fill µs"] + row["merge µs"])


def _measured(settings: Settings, work: Path, rows: int, queries: int) -> tuple[Any, ...]:
    store = make_store(work / f"keys-{rows}", rows, dimension=DIMENSION)
    resources = dry_run(store, IndexOptions(), Job(memory=settings.memory)).resources
    store.close()
    built: Measured = in_own_process(build_costs, store.root, settings.memory)
    searched: Measured = in_own_process(search_cost, store.root, settings.memory, queries)
    costs: dict[str, float] = built.value
    shutil.rmtree(store.root)
    return (
        rows,
        int(costs["lists"]),
        *(round(costs[stage] / rows * 1e6, 2) for stage in STAGES),
        round(sum(costs[stage] for stage in STAGES) / rows * 1e6, 2),
        round((built.peak_bytes + costs["start"]) / 1e6),
        round(resources.peak_bytes / 1e6),
        round(costs["written"], 3),
        round(costs["recall"], 4),
        round(float(searched.value) * 1e6, 1),
        round(searched.peak_bytes / 1e6),
    )


class CpuClock(Reporter):
    """Measures CPU seconds of each stage, and the bytes below a folder at its end, before runs are removed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.watched: Callable[[], int] = lambda: 0
        self.bytes: dict[str, int] = {}

    @contextmanager
    def bar(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[float], None]]:
        started = time.process_time()
        yield lambda count: None
        self.seconds[stage] = time.process_time() - started
        self.bytes[stage] = self.watched()


def build_costs(root: Path, memory: int) -> dict[str, float]:
    """Return CPU seconds of each stage and other figures of a build; importable, to run in a separate process."""
    start, clock = _resident(), CpuClock()
    clock.watched = lambda: bytes_below(root / "index")
    report = build_index(Datastore(root), IndexOptions(), Job(reporter=clock, memory=memory))
    written = clock.bytes["merge"] / report.bytes  # runs and lists, by the lists
    return clock.seconds | {
        "lists": report.plan.nlist,
        "start": start,
        "written": written,
        "recall": report.check.recall,
    }


def search_cost(root: Path, memory: int, count: int) -> float:
    """Return the CPU seconds per query of a bulk search."""
    store = Datastore(root)
    dimension = store.segments[0].dimension
    searcher, queries = Searcher(store), np.ascontiguousarray(ClusteredKeys(dimension).queries(2, count))
    started = time.process_time()
    searcher.search(queries, min(K, store.rows), min(NPROBE, searcher.plan.nlist), memory=memory // 2)
    return (time.process_time() - started) / count


def of_store(settings: Settings, root: Path) -> Result:
    """Measure the cost of searching an existing store under ``--memory``."""
    count = settings.size(settings.queries, quick=1024, full=20_000)
    bulk: Measured = in_own_process(search_cost, root, settings.memory, count)
    seconds = np.array(in_own_process(single_seconds, root).value) * 1e3
    store = Datastore(root)
    searcher, dimension = Searcher(store), store.segments[0].dimension
    row = (
        store.rows,
        dimension,
        searcher.plan.nlist,
        round(bytes_below(root) / store.rows, 1),
        round(searcher.check.recall, 4),
        round(float(bulk.value) * 1e6, 1),
        round(bulk.peak_bytes / 1e6),
        round(float(np.median(seconds)), 2),
        round(float(np.quantile(seconds, 0.95)), 2),
    )
    about = {"memory": settings.memory, "k": K, "nprobe": NPROBE, "queries": count}
    return Result(
        "scale", about, STORE_COLUMNS, [row], {"peak_vs_promise": round(bulk.peak_bytes / settings.memory, 4)}
    )


def single_seconds(root: Path) -> list[float]:
    """Return the seconds of single queries, without the first few, which open files."""
    store = Datastore(root)
    searcher = Searcher(store)
    searcher.prepare()
    seconds = []
    for query in ClusteredKeys(store.segments[0].dimension).queries(3, _SINGLE):
        started = time.perf_counter()
        searcher.search(query[None], min(K, store.rows), min(NPROBE, searcher.plan.nlist), rows=True)
        seconds.append(time.perf_counter() - started)
    return seconds[_SINGLE // 10 :]


def _resident() -> int:
    from benchmarks.measuring import _status_bytes

    return _status_bytes("VmRSS")
