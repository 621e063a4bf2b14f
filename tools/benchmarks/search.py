"""Bulk search against faiss in RAM and against the public kNN-LM scripts' way; same keys, quantisers, k and nprobe.

knnstore joins all queries with the lists that they probe, at exact distances, from disk through the page cache.
faiss searches PQ codes in RAM. The public way searches block after block with faiss and then reads the candidates'
keys from a float16 memory map in corpus order to compute their exact distances. The baselines, whose cost a query
doesn't depend on their number, get fewer of them.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from make_keys import ClusteredKeys, make_store

from benchmarks.faiss_baselines import filled_index, key_blocks, plan_of
from benchmarks.measuring import Contestant, Result, Settings, in_turn, rate_of, rate_rows, ratio
from knnstore.build import IndexOptions, build_index
from knnstore.datastore.store import Datastore, store_path
from knnstore.datastore.stores import Stores
from knnstore.index.check import recall
from knnstore.index.exact import exact_search
from knnstore.index.search import Searcher
from knnstore.lm.forward import key_model, window_keys
from knnstore.lm.spec import LmSpec
from knnstore.neighbours import Float32, Int64
from knnstore.progress import Reporter
from knnstore.scheduling import SerialRunner, available_cores
from knnstore.score.options import ScoreOptions
from knnstore.score.texts import gather_texts
from knnstore.windows import cut_windows

K, NPROBE, DIMENSION = 1024, 32, 256
SCRIPT_BLOCK = 1024  # queries a call of the public scripts: one window's tokens
GATHER_BLOCK = 64  # of which so many are re-ranked at a time: their candidates' keys are 64 MB in float32
RECALL_QUERIES = 256


def run(settings: Settings, work: Path) -> Result:
    store, queries = keys_and_queries(settings, work)
    few = queries[: settings.size(None, quick=1024, full=8192)]
    rounds = settings.size(settings.rounds, quick=2, full=5)
    faiss.omp_set_num_threads(available_cores())
    searcher, index, plan = Searcher(store), filled_index(store), plan_of(store)
    index.nprobe = nprobe = min(NPROBE, plan.nlist)
    k = min(K, store.rows)
    keys = float16_map(store, work)

    def lists() -> float:
        return rate_of(len(queries), lambda: searcher.search(queries, k, nprobe, memory=settings.memory // 2))

    contestants: dict[str, Contestant] = {
        "knnstore lists": lists,
        "faiss in RAM": lambda: rate_of(len(few), lambda: index.search(few, k)),
        "faiss + memmap": lambda: rate_of(len(few), lambda: list(reranked(index, keys, few, k))),
    }
    rates = in_turn(contestants, rounds)
    some = queries[:RECALL_QUERIES]
    quantised = index.search(some, k)[1]  # re-ranking the k that faiss found doesn't change which they are
    found = {"knnstore lists": searcher.search(some, k, nprobe, rows=True).rows, "faiss in RAM": quantised}
    recalls = recalls_of(store, some, k, found | {"faiss + memmap": quantised})
    ratios = {
        "search_vs_faiss_ram": ratio(rates, "knnstore lists", "faiss in RAM"),
        "search_vs_public_way": ratio(rates, "knnstore lists", "faiss + memmap"),
        "recall_vs_faiss": round(recalls["knnstore lists"] / recalls["faiss in RAM"], 4),
    }
    about = {"keys": store.rows, "d": plan.dimension, "k": k, "nlist": plan.nlist, "nprobe": nprobe}
    about |= {"queries": len(queries), "queries of the baselines": len(few), "rounds": rounds}
    table = [(*row, recalls[row[0]]) for row in rate_rows(rates, "faiss in RAM")]
    columns = ("contestant", "queries/s", "lowest", "highest", "÷ faiss in RAM", f"recall@{k}")
    return Result("search", about, columns, table, ratios)


def keys_and_queries(settings: Settings, work: Path) -> tuple[Datastore, Float32]:
    """An indexed store and queries: ``--store`` and the keys of its held-out text, or clustered keys."""
    count = settings.size(settings.queries, quick=8192, full=40_000)
    if settings.store is not None:
        store = Datastore(store_path(str(settings.store)))
        return store, heldout_keys(store, settings.model, count)
    rows = settings.size(settings.rows, quick=65_536, full=1_000_000)
    store = make_store(work / "keys", rows, dimension=DIMENSION)
    build_index(store, IndexOptions(memory=settings.memory), SerialRunner(), Reporter())
    return Datastore(store.root), ClusteredKeys(DIMENSION).queries(2, count)


def heldout_keys(store: Datastore, model: str, count: int) -> Float32:
    """Keys of the first held-out tokens, float32 (at most count, d)."""
    recipe = store.manifest.key
    keys = key_model(LmSpec(model, recipe.layer))
    _, texts = gather_texts(ScoreOptions(model=model), Stores([store]), keys.loaded)
    windows = cut_windows(texts.first, texts.tokens, context=recipe.context, stride=recipe.stride, rows=(0, count))
    parts = [part for _, part in window_keys(keys, windows, texts.read, 4096)]
    return np.ascontiguousarray(np.concatenate(parts)[:count])


def float16_map(store: Datastore, work: Path) -> Any:
    """The keys as the public scripts keep them: a float16 memory map (rows, d) in corpus order, in the page cache."""
    width = store.segments[0].dimension
    keys = np.memmap(work / "memmap.keys", np.float16, "w+", shape=(store.rows, width))
    for first_row, block in key_blocks(store):
        keys[first_row : first_row + len(block)] = block
    return keys


def reranked(index: Any, keys: Any, queries: Float32, k: int) -> Iterator[tuple[Float32, Int64]]:
    """Exact distances and row numbers, block by block: faiss's candidates, re-ranked by reads of the memory map."""
    for begin in range(0, len(queries), SCRIPT_BLOCK):
        block = queries[begin : begin + SCRIPT_BLOCK]
        found = index.search(block, k)[1]
        rows = iter(zip(block, found, strict=True))
        while part := list(islice(rows, GATHER_BLOCK)):
            wanted = np.stack([ids for _, ids in part])  # (queries, k)
            vectors = torch.from_numpy(keys[wanted]).float()  # (queries, k, d); −1 reads the last row, as theirs does
            query = torch.from_numpy(np.stack([query for query, _ in part]))
            distances = (query[:, None] - vectors).square_().sum(dim=2).numpy()
            yield distances, wanted


def recalls_of(store: Datastore, queries: Float32, k: int, found: dict[str, Any]) -> dict[str, float]:
    """Share of the k true neighbours among each contestant's rows, int64 (queries, k)."""
    true = exact_search(store, queries, k, rows=True).rows
    assert true is not None
    return {name: round(recall(true, rows), 4) for name, rows in found.items()}
