"""Recall against speed over nprobe: bulk and one query at a time, warm and cold, knnstore and faiss."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.asking import found_rows, spread, true_neighbours
from benchmarks.coldness import cool, drop_pages, list_files
from benchmarks.faiss_baselines import OnDisk, reranked, set_nprobe
from benchmarks.figures import new_figure, save
from benchmarks.measuring import Table, rate_of
from knnstore.arrays import Float32
from knnstore.datastore.store import Datastore
from knnstore.indexes.check import recall
from knnstore.indexes.ivfpq.search import Searcher

PROBES = (4, 8, 16, 32, 64, 128)
BULK, SINGLE_WARM, SINGLE_COLD, TRUE, FAISS, SCRIPT = 8192, 100, 20, 256, 512, 128  # numbers of queries
COLUMNS = ("nprobe", "recall@k", "way", "bulk warm q/s", "bulk cold q/s", "one warm ms", "one cold ms")


@dataclass(frozen=True, slots=True)
class Point:
    """A contestant at one nprobe: rates in queries/s, latencies in ms; None if not measured."""

    way: str
    nprobe: int
    recall: float
    bulk_warm: float | None = None
    bulk_cold: float | None = None
    one_warm: float | None = None
    one_cold: float | None = None

    def row(self) -> tuple[Any, ...]:
        """Return a row of the table."""
        rest = (self.bulk_warm, self.bulk_cold, self.one_warm, self.one_cold)
        return str(self.nprobe), self.recall, self.way, *("" if value is None else round(value, 3) for value in rest)


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """The store, faiss's index of the same lists in RAM and mapped, a memory map of the keys, and the queries."""

    store: Datastore
    in_ram: Any
    on_disk: OnDisk
    keys: Any
    queries: Float32
    k: int
    memory: int


def curve(material: Material) -> list[Point]:
    """Return the points of every contestant, for each nprobe."""
    some = spread(material.queries, TRUE)
    true = true_neighbours(material.store, some, material.k)
    searcher = Searcher(material.store)
    found_rows(searcher, material.queries[:1], 1, searcher.plan.nlist)  # verifies all checksums before the clock runs
    points = []
    for nprobe in (number for number in PROBES if number <= searcher.plan.nlist):
        set_nprobe(material.in_ram, nprobe)
        set_nprobe(material.on_disk.index, nprobe)
        of_knnstore = recall(true, found_rows(searcher, some, material.k, nprobe))
        of_faiss = recall(true, material.in_ram.search(some, material.k)[1])
        points += [_knnstore(material, searcher, nprobe, of_knnstore), *_faiss(material, nprobe, of_faiss)]
    return points


def _knnstore(material: Material, searcher: Searcher, nprobe: int, recalled: float) -> Point:
    many, files = spread(material.queries, BULK), list_files(searcher)

    def bulk() -> float:
        memory = material.memory // 2
        return rate_of(len(many), lambda: searcher.search(many, material.k, nprobe, memory=memory))

    def one(query: Float32) -> None:
        searcher.search(query, material.k, nprobe)

    def make_cold() -> None:
        cool(searcher, files)

    warm = bulk()
    make_cold()
    cold = bulk()
    few, fewer = spread(material.queries, SINGLE_WARM), spread(material.queries, SINGLE_COLD)
    latencies(few[:20], one)
    return Point(
        "knnstore", nprobe, recalled, warm, cold, latencies(few, one), latencies(fewer, one, before_each=make_cold)
    )


def _faiss(material: Material, nprobe: int, recalled: float) -> list[Point]:
    k, some = material.k, spread(material.queries, FAISS)
    few, fewer = spread(material.queries, SINGLE_WARM), spread(material.queries, SINGLE_COLD)
    disk = material.on_disk

    def make_cold() -> None:
        disk.unmap()
        drop_pages([disk.path])

    ram = rate_of(len(some), lambda: material.in_ram.search(some, k))
    make_cold()
    cold = rate_of(len(some), lambda: disk.index.search(some, k))
    warm = rate_of(len(some), lambda: disk.index.search(some, k))
    script = spread(material.queries, SCRIPT)
    public = rate_of(len(script), lambda: list(reranked(material.in_ram, material.keys, script, k)))
    one = latencies(few, lambda query: material.in_ram.search(query, k))
    mapped = latencies(few, lambda query: disk.index.search(query, k))
    mapped_cold = latencies(fewer, lambda query: disk.index.search(query, k), before_each=make_cold)
    return [
        Point("faiss in RAM", nprobe, recalled, bulk_warm=ram, one_warm=one),
        Point("faiss on disk", nprobe, recalled, warm, cold, mapped, mapped_cold),
        Point("faiss + memmap", nprobe, recalled, bulk_warm=public),
    ]


def latencies(
    queries: Float32, search: Callable[[Float32], Any], before_each: Callable[[], None] = lambda: None
) -> float:
    """Return the median latency of a query searched on its own, in milliseconds."""
    spent = []
    for number in range(len(queries)):
        before_each()
        started = time.perf_counter()
        search(queries[number : number + 1])
        spent.append(time.perf_counter() - started)
    return 1000 * statistics.median(spent)


def curve_table(points: list[Point]) -> Table:
    """Return all points as a table."""
    ordered = sorted(points, key=lambda point: (point.way, point.nprobe))
    title = (
        f"over nprobe: in bulk {BULK:,} queries of knnstore, {FAISS:,} of faiss and {SCRIPT} with re-ranking; "
        f"one by one {SINGLE_WARM} warm and {SINGLE_COLD} cold, medians"
    )
    return Table(title, COLUMNS, [point.row() for point in ordered])


def draw_curves(points: list[Point], about: str, path: Path) -> None:
    """Draw a PNG: recall against queries per second in bulk, and against the latency of one query."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, left, right = new_figure(about)
    colours = {
        "knnstore": "#2a9d6f",
        "faiss in RAM": "#4464ad",
        "faiss on disk": "#8a6bbf",
        "faiss + memmap": "#c44536",
    }
    for way, colour in colours.items():
        for axes, kind in ((left, "bulk"), (right, "one")):
            for state, style in (("warm", "-"), ("cold", ":")):
                chosen = [(getattr(p, f"{kind}_{state}"), p.recall) for p in points if p.way == way]
                chosen = [(x, y) for x, y in chosen if x is not None]
                if chosen:
                    label = way if way in ("faiss in RAM", "faiss + memmap") else f"{way}, {state}"
                    axes.plot(*zip(*chosen, strict=True), style, marker="o", ms=4, color=colour, label=label)
    left.set(xscale="log", xlabel="queries per second in bulk", ylabel="recall@1024", title="Bulk: right is faster")
    right.set(xscale="log", xlabel="ms for one query (median)", title="One at a time: left is faster")
    for axes in (left, right):
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    save(figure, path)
