"""What is searched and what for: an indexed store, and keys of text that it doesn't hold."""

from pathlib import Path

import numpy as np
from make_keys import ClusteredKeys, make_store

from benchmarks.material import ingested, text_folder
from benchmarks.measuring import Settings
from knnstore.build import IndexOptions, build_index
from knnstore.datastore.store import Datastore, store_path
from knnstore.datastore.stores import Stores
from knnstore.index.exact import exact_search
from knnstore.index.search import Searcher
from knnstore.lm.forward import key_model, window_keys
from knnstore.lm.spec import LmSpec
from knnstore.neighbours import Float32, Int64
from knnstore.progress import Reporter
from knnstore.scheduling import SerialRunner
from knnstore.score.options import ScoreOptions
from knnstore.score.texts import gather_texts
from knnstore.windows import cut_windows

DIMENSION = 256
HELD_OUT = 0.06  # of a store made here: the queries come from it


def keys_and_queries(settings: Settings, work: Path) -> tuple[Datastore, Float32]:
    """An indexed store and queries.

    ``--store`` and keys of ``--text``, else of its held-out text; ``--quick``: clustered keys; else a store made of
    the text of ``--corpus`` (by default Python's documentation) and keys of what is held out of it.
    """
    count = settings.size(settings.queries, quick=8192, full=40_960)
    if settings.store is not None:
        store = Datastore(store_path(str(settings.store)))
        if store.segments[0].plan.compute == "synthetic":
            return store, ClusteredKeys(store.segments[0].dimension).queries(2, count)
        return store, text_keys(store, settings, count)
    rows = settings.size(settings.rows, quick=65_536, full=1_200_000)
    synthetic = settings.quick and settings.corpus is None
    if synthetic:
        store = make_store(work / "keys", rows, dimension=DIMENSION)
    else:
        store = ingested(settings, text_folder(settings, work, rows), work / "keys", holdout=HELD_OUT, workers=0)
    build_index(store, IndexOptions(memory=settings.memory), SerialRunner(), Reporter())
    store = Datastore(store.root)
    return store, ClusteredKeys(DIMENSION).queries(2, count) if synthetic else text_keys(store, settings, count)


def text_keys(store: Datastore, settings: Settings, count: int) -> Float32:
    """Keys of the first tokens of the text that is asked about, float32 (at most count, d)."""
    recipe = store.manifest.key
    keys = key_model(LmSpec(settings.model, recipe.layer))
    text = () if settings.text is None else (str(settings.text),)
    _, texts = gather_texts(ScoreOptions(model=settings.model, text=text), Stores([store]), keys.loaded)
    windows = cut_windows(texts.first, texts.tokens, context=recipe.context, stride=recipe.stride, rows=(0, count))
    parts = [part for _, part in window_keys(keys, windows, texts.read, 4096)]
    return np.ascontiguousarray(np.concatenate(parts)[:count])


def spread(queries: Float32, count: int) -> Float32:
    """So many of the queries, evenly spread over them."""
    rows = np.linspace(0, len(queries) - 1, min(count, len(queries))).astype(np.int64)
    return np.ascontiguousarray(queries[rows])


def true_neighbours(store: Datastore, queries: Float32, k: int) -> Int64:
    """Row numbers of the k nearest of all keys: int64 (n, k)."""
    rows = exact_search(store, queries, k, rows=True).rows
    assert rows is not None
    return rows


def found_rows(searcher: Searcher, queries: Float32, k: int, nprobe: int) -> Int64:
    """Row numbers that a bulk search finds: int64 (n, k)."""
    rows = searcher.search(queries, k, nprobe, rows=True).rows
    assert rows is not None
    return rows
