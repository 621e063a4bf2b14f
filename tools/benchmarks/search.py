"""Bulk search, compared with faiss in RAM and with the public kNN-LM scripts; same lists, codes, k and nprobe.

knnstore joins all queries with the lists that they probe, at exact distances, from disk through the page cache. faiss
searches the store's PQ codes in RAM. The public scripts search block by block with faiss, then read the keys of the
candidates from a float16 memory map in corpus order to compute exact distances. The baselines get fewer queries,
because their cost per query doesn't depend on the number. Without ``--quick``, the curve over nprobe and the indexes of
other installed libraries follow.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss

from benchmarks.asking import found_rows, keys_and_queries, spread, true_neighbours
from benchmarks.curves import Material, curve, curve_table, draw_curves
from benchmarks.faiss_baselines import OnDisk, float16_map, in_ram, plan_of, reranked, set_nprobe
from benchmarks.figures import require_matplotlib
from benchmarks.measuring import Contestant, Result, Settings, Table, in_turn, rate_of, rate_rows, ratio
from benchmarks.other_tools import compare_others
from knnstore.arrays import Float32
from knnstore.errors import UsageError
from knnstore.indexes.check import recall
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.scheduling import available_cores

K, NPROBE = 1024, 32
RECALL_QUERIES = 256


def run(settings: Settings, work: Path) -> Result:
    require_figures(settings)
    store, queries = keys_and_queries(settings, work)
    few = spread(queries, settings.size(None, quick=1024, full=4096))
    fewest = spread(queries, settings.size(None, quick=1024, full=2048))
    rounds = settings.size(settings.rounds, quick=2, full=3)
    faiss.omp_set_num_threads(available_cores())
    searcher, index, plan = Searcher(store), in_ram(store, work), plan_of(store)
    nprobe = min(NPROBE, plan.nlist)
    set_nprobe(index, nprobe)
    k = min(K, store.rows)
    keys = float16_map(store, work)
    spent: dict[str, list[float]] = {}
    contestants = {
        "knnstore lists": timed(
            spent, "knnstore lists", queries, lambda q: searcher.search(q, k, nprobe, memory=settings.memory // 2)
        ),
        "faiss in RAM": timed(spent, "faiss in RAM", few, lambda q: index.search(q, k)),
        "faiss + memmap": timed(spent, "faiss + memmap", fewest, lambda q: list(reranked(index, keys, q, k))),
    }
    rates = in_turn(contestants, rounds)
    some = spread(queries, RECALL_QUERIES)
    true = true_neighbours(store, some, k)
    quantised = recall(true, index.search(some, k)[1])  # re-ranking faiss's k results doesn't change the set
    recalls = {
        "knnstore lists": recall(true, found_rows(searcher, some, k, nprobe)),
        "faiss in RAM": quantised,
        "faiss + memmap": quantised,
    }
    ratios = {
        "search_vs_faiss_ram": ratio(rates, "knnstore lists", "faiss in RAM"),
        "search_vs_public_way": ratio(rates, "knnstore lists", "faiss + memmap"),
        "cpu_search_vs_faiss_ram": ratio(spent, "faiss in RAM", "knnstore lists"),
        "cpu_search_vs_public_way": ratio(spent, "faiss + memmap", "knnstore lists"),
        "recall_vs_faiss": round(recalls["knnstore lists"] / recalls["faiss in RAM"], 4),
    }
    about = {"keys": store.rows, "d": plan.dimension, "k": k, "nlist": plan.nlist, "nprobe": nprobe}
    about |= {"queries": len(queries), "of faiss": len(few), "of faiss + memmap": len(fewest), "rounds": rounds}
    table = [
        (*row, round(1e6 * min(spent[row[0]]), 1), round(recalls[row[0]], 4))
        for row in rate_rows(rates, "faiss in RAM")
    ]
    columns = ("contestant", "queries/s", "lowest", "highest", "÷ faiss in RAM", "CPU µs per query", f"recall@{k}")
    more: list[Table] = []
    notes: list[str] = []
    if not settings.quick:
        material = Material(store, index, OnDisk(store, work), keys, queries, k, settings.memory)
        points = curve(material)
        more.append(curve_table(points))
        if settings.figure is not None:
            draw_curves(
                points, f"{store.rows:,} keys of {plan.dimension}, {plan.nlist:,} lists, k {k}", settings.figure
            )
        others, notes = compare_others(store, queries, k, work, true_of=(some, true))
        more += others
    return Result("search", about, columns, table, ratios, tuple(more), tuple(notes))


def timed(spent: dict[str, list[float]], name: str, queries: Float32, search: Callable[[Float32], Any]) -> Contestant:
    """Return a contestant whose CPU seconds per query, over all threads, are appended to ``spent``."""

    def rate() -> float:
        started = time.process_time()
        result = rate_of(len(queries), lambda: search(queries))
        spent.setdefault(name, []).append((time.process_time() - started) / len(queries))
        return result

    return rate


def require_figures(settings: Settings) -> None:
    """Raise UsageError, before anything is measured, if a figure is requested but can't be drawn."""
    require_matplotlib(settings)
    if settings.figure is not None and settings.quick:
        raise UsageError("--figure draws the curve over nprobe, which --quick leaves out: omit one of them")
