"""faiss's own IVF-PQ over a store's keys, with the store's own quantisers, so that only the work differs."""

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

SCRIPT_BLOCK = 1024  # queries a call of the public scripts: one window's tokens
GATHER_BLOCK = 64  # of which so many are re-ranked at a time: their candidates' keys are 64 MB in float32
_DONTNEED = 4  # of madvise


def plan_of(store: Datastore) -> IvfPqPlan:
    """The plan of the store's finished index."""
    assert store.manifest.index is not None
    return open_ivfpq(store.root, store.manifest.index).plan


def empty_index(store: Datastore) -> Any:
    """A trained, empty IndexIVFPQ with the centroids and codebooks of the store's index."""
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
    """Every chunk of keys, float32 (rows, d), with its first row; corpus order, so faiss's ids are row numbers."""
    first_row = 0
    for segment in store.segments:
        for chunk in range(segment.chunks):
            begin, end = segment.chunk_range(chunk)
            yield first_row + begin, decode(segment.keys(begin, end), segment.codec.scales)
        first_row += segment.rows


def exported(store: Datastore, folder: Path) -> Path:
    """The store's own lists and codes as a file of faiss, so that both search the very same candidates."""
    path = folder / "ivfpq.faiss"
    if not path.is_file():
        write_faiss(store, path, lambda _: None)
    return path


def in_ram(store: Datastore, folder: Path) -> Any:
    """faiss's index of the store's lists, codes and ids in memory."""
    return faiss.read_index(str(exported(store, folder)))


def set_nprobe(index: Any, nprobe: int) -> None:
    """Lists that each query searches, whether or not keys are rotated before."""
    faiss.extract_index_ivf(index).nprobe = nprobe


class OnDisk:
    """faiss's index with the lists of the same file mapped, as its ``IO_FLAG_MMAP`` leaves them on disk."""

    def __init__(self, store: Datastore, folder: Path) -> None:
        self.path = exported(store, folder)
        index: Any = faiss.read_index(str(self.path), faiss.IO_FLAG_MMAP)
        self.index = index
        lists: Any = faiss.extract_index_ivf(index).invlists
        self._lists: Any = faiss.downcast_InvertedLists(lists)

    def unmap(self) -> None:
        """Let go of the mapped pages, so that the page cache may drop them; they come back when they are read."""
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if madvise(int(self._lists.ptr), self._lists.totsize, _DONTNEED):
            raise OSError(ctypes.get_errno(), "madvise")


def written_shards(store: Datastore, folder: Path) -> Iterator[Path]:
    """The keys of each chunk added to an empty index of their own and written to a file, as faiss's demo does."""
    for first_row, keys in key_blocks(store):
        shard = empty_index(store)
        shard.add_with_ids(keys, np.arange(first_row, first_row + len(keys)))
        path = folder / f"shard-{first_row}.index"
        faiss.write_index(shard, str(path))
        yield path


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
