"""faiss's IVF-PQ over a store's keys with the store's quantisers, so that only the search differs."""

import ctypes
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from knnstore.arrays import Float32, Int64
from knnstore.datastore.store import Datastore
from knnstore.indexes.compute.stored import decode
from knnstore.indexes.ivfpq.faissfile import write_faiss
from knnstore.indexes.ivfpq.plan import IvfPqPlan, open_ivfpq
from knnstore.indexes.ivfpq.quantiser import load_quantiser

SCRIPT_BLOCK = 1024  # queries per call in the public scripts: the tokens of a window
GATHER_BLOCK = 64  # queries that are re-ranked at a time: the keys of their candidates have 64 MB in float32
_DONTNEED = 4  # MADV_DONTNEED


def plan_of(store: Datastore) -> IvfPqPlan:
    """Return the plan of the store's finished index."""
    assert store.manifest.index is not None
    return open_ivfpq(store.root, store.manifest.index).plan


def empty_index(store: Datastore) -> Any:
    """Return a trained, empty IndexIVFPQ with the centroids and codebooks of the store's index."""
    plan = plan_of(store)
    quantiser = load_quantiser(open_ivfpq(store.root, plan.name))
    coarse = faiss.IndexFlatL2(plan.dimension)
    coarse.add(quantiser.centroids)
    index = faiss.IndexIVFPQ(coarse, plan.dimension, plan.nlist, plan.pq_bytes, 8)
    faiss.copy_array_to_vector(quantiser.codebooks.ravel(), index.pq.centroids)
    index.is_trained = True
    index.precompute_table()
    return index


def key_blocks(store: Datastore) -> Iterator[tuple[int, Float32]]:
    """Yield each chunk of keys, float32 (rows, d), with its first row; in corpus order, so faiss's ids are rows."""
    first_row = 0
    for segment in store.segments:
        for chunk in range(segment.chunks):
            begin, end = segment.chunk_range(chunk)
            yield first_row + begin, decode(segment.keys(begin, end), segment.codec.scales)
        first_row += segment.rows


def exported(store: Datastore, folder: Path) -> Path:
    """Export the store's lists and codes as a file of faiss, so that both search the same candidates."""
    path = folder / "ivfpq.faiss"
    if not path.is_file():
        write_faiss(store, path, lambda _: None)
    return path


def in_ram(store: Datastore, folder: Path) -> Any:
    """Return faiss's index of the store's lists, codes and ids in memory."""
    return faiss.read_index(str(exported(store, folder)))


def set_nprobe(index: Any, nprobe: int) -> None:
    """Set the number of lists per query, for indexes with and without rotation."""
    faiss.extract_index_ivf(index).nprobe = nprobe


class OnDisk:
    """faiss's index with the lists of the same file mapped by ``IO_FLAG_MMAP``."""

    def __init__(self, store: Datastore, folder: Path) -> None:
        self.path = exported(store, folder)
        index: Any = faiss.read_index(str(self.path), faiss.IO_FLAG_MMAP)
        self.index = index
        lists: Any = faiss.extract_index_ivf(index).invlists
        self._lists: Any = faiss.downcast_InvertedLists(lists)

    def unmap(self) -> None:
        """Release the mapped pages, so that the page cache can drop them; reading maps them again."""
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if madvise(int(self._lists.ptr), self._lists.totsize, _DONTNEED):
            raise OSError(ctypes.get_errno(), "madvise")


def written_shards(store: Datastore, folder: Path) -> Iterator[Path]:
    """Add each chunk of keys to a separate empty index, write it and yield the file, as in faiss's demo."""
    for first_row, keys in key_blocks(store):
        shard = empty_index(store)
        shard.add_with_ids(keys, np.arange(first_row, first_row + len(keys)))
        path = folder / f"shard-{first_row}.index"
        faiss.write_index(shard, str(path))
        yield path


def float16_map(store: Datastore, work: Path) -> Any:
    """Return the keys as the public scripts store them: a float16 memory map (rows, d) in corpus order."""
    width = store.segments[0].dimension
    keys = np.memmap(work / "memmap.keys", np.float16, "w+", shape=(store.rows, width))
    for first_row, block in key_blocks(store):
        keys[first_row : first_row + len(block)] = block
    return keys


def reranked(index: Any, keys: Any, queries: Float32, k: int) -> Iterator[tuple[Float32, Int64]]:
    """Yield exact distances and row numbers of faiss's candidates, from reads of the memory map, by block."""
    for begin in range(0, len(queries), SCRIPT_BLOCK):
        block = queries[begin : begin + SCRIPT_BLOCK]
        candidates = index.search(block, k)[1]
        rows = iter(zip(block, candidates, strict=True))
        while part := list(islice(rows, GATHER_BLOCK)):
            wanted = np.stack([ids for _, ids in part])  # (queries, k)
            vectors = torch.from_numpy(keys[wanted]).float()  # (queries, k, d); −1 reads the last row, as there
            query = torch.from_numpy(np.stack([query for query, _ in part]))
            distances = (query[:, None] - vectors).square_().sum(dim=2).numpy()
            yield distances, wanted
