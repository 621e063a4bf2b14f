"""Indexes of other libraries over the store's keys, if they are installed: ``pip install 'knnstore[bench]'``.

Each is built in memory or in the working folder, with the library's defaults for this size, from the same decoded keys
that knnstore searches, and timed with the same queries. DiskANN has a Python package too, but it needs NumPy below 2,
with which current versions of torch and knnstore don't run.
"""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.asking import found_rows, spread
from benchmarks.faiss_baselines import key_blocks, plan_of
from benchmarks.measuring import Table, rate_of
from knnstore.arrays import Float32, Int64
from knnstore.datastore.store import Datastore
from knnstore.indexes.check import recall
from knnstore.indexes.ivfpq.search import Searcher

MOST_KEYS = 2**20  # a graph takes about 300 µs of a core per key
QUERIES = 512  # per library; knnstore gets all queries, because its bulk search is made for many

Search = Callable[[Float32], Int64]
"""Maps queries, float32 (n, d), to row numbers, int64 (n, k)."""


def compare_others(
    store: Datastore, queries: Float32, k: int, work: Path, *, true_of: tuple[Float32, Int64]
) -> tuple[list[Table], list[str]]:
    """Return a table of the installed libraries beside knnstore, and a note for each one left out.

    ``true_of``: queries and the rows of their k nearest keys, to measure the recall.
    """
    some, true = true_of
    rows: list[tuple[Any, ...]] = []
    notes = ["DiskANN: left out, because its Python package needs NumPy below 2, with which knnstore doesn't run"]
    for name, (module, build) in _LIBRARIES.items():
        if importlib.util.find_spec(module) is None:
            notes.append(f"{name}: left out, because it isn't installed (pip install 'knnstore[bench]' for usearch)")
        elif store.rows > MOST_KEYS:
            notes.append(f"{name}: left out, because {store.rows:,} keys take too long; the limit is {MOST_KEYS:,}")
        else:
            started, cpu = time.perf_counter(), time.process_time()
            searches = build(store, k, work)
            seconds = time.perf_counter() - started, time.process_time() - cpu
            for setting, search in searches.items():
                few = spread(queries, QUERIES)
                rate = rate_of(len(few), lambda s=search, q=few: s(q))  # type: ignore[misc]
                rows.append((f"{name}, {setting}", rate, recall(true, search(some)), *seconds))
    if not rows:
        return [], notes
    searcher = Searcher(store)
    for nprobe in sorted({searcher.nprobe, min(128, searcher.plan.nlist)}):
        rate = rate_of(len(queries), lambda n=nprobe: searcher.search(queries, k, n))  # type: ignore[misc]
        recalled = recall(true, found_rows(searcher, some, k, nprobe))
        rows.insert(0, (f"knnstore, nprobe {nprobe}", rate, recalled, "", ""))
    columns = ("index", "queries/s", f"recall@{k}", "built in s", "CPU s")
    return [Table(f"other libraries, {QUERIES} queries each", columns, rows)], notes


def _usearch(store: Datastore, k: int, _work: Path) -> dict[str, Search]:
    """Build usearch's HNSW graph over float16 keys."""
    from usearch.index import Index

    index = Index(ndim=store.segments[0].dimension, metric="l2sq", dtype="f16")
    for first_row, keys in key_blocks(store):
        index.add(np.arange(first_row, first_row + len(keys)), keys)

    def search(expansion: int) -> Search:
        def rows(queries: Float32) -> Int64:
            index.expansion_search = expansion
            return np.asarray(index.search(queries, k).keys, np.int64).reshape(len(queries), k)

        return rows

    return {f"HNSW, expansion {expansion}": search(expansion) for expansion in (k, 2 * k)}


def _lance(store: Datastore, k: int, work: Path) -> dict[str, Search]:
    """Build Lance's IVF-PQ on disk, with as many lists and code bytes as the store's index."""
    import lance
    import pyarrow as pa

    plan, width = plan_of(store), store.segments[0].dimension
    schema = pa.schema([("row", pa.int64()), ("key", pa.list_(pa.float16(), width))])

    def batches() -> Any:
        for first_row, keys in key_blocks(store):
            flat = pa.array(keys.astype(np.float16).ravel())
            columns = [
                pa.array(np.arange(first_row, first_row + len(keys))),
                pa.FixedSizeListArray.from_arrays(flat, width),
            ]
            yield pa.record_batch(columns, schema=schema)

    data = lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), str(work / "keys.lance"))
    data.create_index("key", "IVF_PQ", metric="l2", num_partitions=plan.nlist, num_sub_vectors=plan.pq_bytes)

    def search(refine: int | None) -> Search:
        def rows(queries: Float32) -> Int64:
            result = np.full((len(queries), k), -1, np.int64)
            for number, query in enumerate(queries):
                nearest = {"column": "key", "q": query, "k": k, "nprobes": plan.nprobe, "refine_factor": refine}
                table = data.to_table(columns=["row"], nearest=nearest)
                result[number, : len(table)] = table["row"].to_numpy()
            return result

        return rows

    return {"IVF-PQ": search(None), "IVF-PQ, re-ranked": search(2)}


_LIBRARIES: dict[str, tuple[str, Callable[[Datastore, int, Path], dict[str, Search]]]] = {
    "usearch": ("usearch", _usearch),
    "Lance": ("lance", _lance),
}
