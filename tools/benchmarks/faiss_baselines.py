"""faiss's own IVF-PQ over a store's keys, with the store's own quantisers, so that only the work differs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from knnstore.datastore.store import Datastore
from knnstore.index.plan import IndexPlan, open_index
from knnstore.index.quantiser import load_quantiser
from knnstore.index.train import decode
from knnstore.neighbours import Float32


def plan_of(store: Datastore) -> IndexPlan:
    """The plan of the store's finished index."""
    assert store.manifest.index is not None
    return open_index(store.root, store.manifest.index).plan


def empty_index(store: Datastore) -> Any:
    """A trained, empty IndexIVFPQ with the centroids and codebooks of the store's index."""
    plan = plan_of(store)
    quantiser = load_quantiser(open_index(store.root, plan.name))
    coarse = faiss.IndexFlatL2(plan.dimension)
    coarse.add(quantiser.centroids)
    index = faiss.IndexIVFPQ(coarse, plan.dimension, plan.nlist, plan.pq_bytes, 8)
    faiss.copy_array_to_vector(quantiser.codebooks.ravel(), index.pq.centroids)
    index.is_trained = True
    index.precompute_table()
    return index


def key_blocks(store: Datastore) -> Iterator[tuple[int, Float32]]:
    """Every chunk of keys, float32 (rows, d), with its first row; corpus order, so faiss's ids are row numbers."""
    first_row = 0
    for segment in store.segments:
        for chunk in range(segment.chunks):
            begin, end = segment.chunk_range(chunk)
            yield first_row + begin, decode(segment.keys(begin, end), segment.codec.scales)
        first_row += segment.rows


def filled_index(store: Datastore) -> Any:
    """faiss's index in RAM with every key of the store added."""
    index = empty_index(store)
    for _, keys in key_blocks(store):
        index.add(keys)
    return index


def written_shards(store: Datastore, folder: Path) -> Iterator[Path]:
    """The keys of each chunk added to an empty index of their own and written to a file, as faiss's demo does."""
    for first_row, keys in key_blocks(store):
        shard = empty_index(store)
        shard.add_with_ids(keys, np.arange(first_row, first_row + len(keys)))
        path = folder / f"shard-{first_row}.index"
        faiss.write_index(shard, str(path))
        yield path
