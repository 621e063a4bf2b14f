"""An indexed store to search, and queries: keys of text that it doesn't hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from make_keys import ClusteredKeys, make_store

from benchmarks.material import ingested, text_folder
from benchmarks.measuring import Settings
from knnstore.arrays import Float32, Int64
from knnstore.datastore.store import Datastore, store_path
from knnstore.datastore.stores import Stores
from knnstore.indexes.exact import exact_search
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.lm.forward import KeyModel, key_model, window_keys
from knnstore.lm.scoring import window_scores
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import Job
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.texts import Texts, gather_texts
from knnstore.windows import cut_windows

DIMENSION = 256
HELD_OUT = 0.06  # held-out share of a store made here, for the queries


@dataclass(frozen=True, slots=True, eq=False)
class AskedTokens:
    """Keys as queries, float32 (n, d), the tokens, int64 (n,), and their ln p by the LM, float64 (n,)."""

    keys: Float32
    targets: Int64
    log_p: Any


def keys_and_queries(settings: Settings, work: Path) -> tuple[Datastore, Float32]:
    """Return an indexed store and queries.

    ``--store`` and keys of ``--text`` or its held-out text; with ``--quick``, clustered keys; else a store of
    ``--corpus`` (by default Python's documentation) and keys of its held-out text.
    """
    count = settings.size(settings.queries, quick=8192, full=40_960)
    if settings.store is not None:
        store = Datastore(store_path(str(settings.store)))
        if store.segments[0].plan.compute == "synthetic":
            return store, ClusteredKeys(store.segments[0].dimension).queries(2, count)
        return store, text_keys(store, settings, count)
    rows = settings.size(settings.rows, quick=65_536, full=1_200_000)
    synthetic = settings.quick and settings.corpus is None
    store = make_store(work / "keys", rows, dimension=DIMENSION) if synthetic else text_store(settings, work, rows)
    build_index(store, IndexOptions(), Job(memory=settings.memory))
    store = Datastore(store.root)
    return store, ClusteredKeys(DIMENSION).queries(2, count) if synthetic else text_keys(store, settings, count)


def text_store(settings: Settings, work: Path, rows: int) -> Datastore:
    """Return ``--store``, or a store of about ``rows`` tokens of ``--corpus``, with a part held out."""
    if settings.store is not None:
        return Datastore(store_path(str(settings.store)))
    return ingested(settings, text_folder(settings, work, rows), work / "keys", holdout=HELD_OUT)


def scored_tokens(store: Datastore, settings: Settings, count: int, piece: int) -> AskedTokens:
    """Return keys and ln p of about ``count`` tokens, in pieces of ``piece`` spread over the text."""
    recipe = store.manifest.key
    model = key_model(LmSpec(settings.model, recipe.layer, "float32"))
    texts = _asked_texts(store, settings, model)
    parts = []
    last = max(0, len(texts.ids) - piece)
    for begin in np.unique(np.linspace(0, last, -(-count // piece)).astype(int)).tolist():
        rows = (begin, min(begin + piece, len(texts.ids)))
        windows = cut_windows(texts.first, texts.tokens, context=recipe.context, stride=recipe.stride, rows=rows)
        for scored in window_scores(model, windows, texts.read, 4096):
            inside = np.flatnonzero((scored.rows >= rows[0]) & (scored.rows < rows[1]))
            parts.append([column[inside] for column in (scored.rows, scored.keys, scored.targets, scored.log_p)])
    rows_of, keys, targets, log_p = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(rows_of, kind="stable")
    return AskedTokens(np.ascontiguousarray(keys[order]), targets[order], log_p[order])


def text_keys(store: Datastore, settings: Settings, count: int) -> Float32:
    """Return keys of the first tokens of the text, float32 (at most count, d)."""
    recipe = store.manifest.key
    keys = key_model(LmSpec(settings.model, recipe.layer))
    texts = _asked_texts(store, settings, keys)
    windows = cut_windows(texts.first, texts.tokens, context=recipe.context, stride=recipe.stride, rows=(0, count))
    parts = [part for _, part in window_keys(keys, windows, texts.read, 4096)]
    return np.ascontiguousarray(np.concatenate(parts)[:count])


def _asked_texts(store: Datastore, settings: Settings, model: KeyModel) -> Texts:
    text = () if settings.text is None else (str(settings.text),)
    return gather_texts(ScoreOptions(model=settings.model, text=text), Stores([store]), model.loaded)[1]


def spread(queries: Float32, count: int) -> Float32:
    """Return ``count`` of the queries, evenly spread."""
    rows = np.linspace(0, len(queries) - 1, min(count, len(queries))).astype(np.int64)
    return np.ascontiguousarray(queries[rows])


def true_neighbours(store: Datastore, queries: Float32, k: int) -> Int64:
    """Return the row numbers of the k nearest of all keys: int64 (n, k)."""
    rows = exact_search(store, queries, k, rows=True).rows
    assert rows is not None
    return rows


def found_rows(searcher: Searcher, queries: Float32, k: int, nprobe: int) -> Int64:
    """Return the row numbers that a bulk search finds: int64 (n, k)."""
    rows = searcher.search(queries, k, nprobe, rows=True).rows
    assert rows is not None
    return rows
