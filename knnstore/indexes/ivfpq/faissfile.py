"""The index as a file that faiss reads: ``IndexIVFPQ`` with row numbers as ids.

faiss itself can write such a file only from lists that are in memory. Here it writes all but the lists, and they
follow from the memory-mapped ones, in the form that ``faiss.read_index`` expects; so the size is bounded by the disk.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.datastore.store import Datastore
from knnstore.files import storage_errors
from knnstore.indexes.compute.rotation import rotate
from knnstore.indexes.ivfpq.quantiser import Quantiser
from knnstore.indexes.ivfpq.search import Searcher

# Inverted lists: tag, number of lists, bytes a code, whether all sizes follow or those of few lists, how many sizes.
_FORM = "<4sQQ4sQ"


def faiss_bytes(store: Datastore) -> int:
    """About how many bytes the file will take. Raises UnfinishedError without an index."""
    plan = Searcher(store).plan
    return store.live_rows * (plan.pq_bytes + 8) + plan.nlist * (plan.dimension * 4 + 8)


def write_faiss(store: Datastore, path: Path, advance: Callable[[float], None]) -> None:
    """Write the store's index to ``path``; ``advance`` is told of keys.

    Removed documents are left out, and an id is the number of a row among those that are left. Raises what ``Searcher``
    does, and ResourceError if it can't be written.
    """
    searcher = Searcher(store)
    plan, parts = searcher.plan, searcher.parts
    numbers = _numbers(store)
    sizes: Int64 = np.stack([part.live for part in parts]).sum(axis=0)
    with storage_errors("write", path), path.open("wb") as file:
        file.write(_before_the_lists(searcher.quantiser, store.live_rows, plan.nprobe))
        file.write(struct.pack(_FORM, b"ilar", plan.nlist, plan.pq_bytes, b"full", plan.nlist))
        file.write(sizes.astype("<u8").tobytes())
        for number in range(plan.nlist):
            bounds = [(part, *part.bounds(number)) for part in parts]
            kept = [part.kept(begin, end) for part, begin, end in bounds]
            for (part, begin, end), places in zip(bounds, kept, strict=True):
                codes = part.codes.rows(begin, end)
                file.write((codes if places is None else codes[places]).tobytes())
            for (part, begin, end), places in zip(bounds, kept, strict=True):
                rows = part.store_rows(begin, end)
                file.write(numbers(rows if places is None else rows[places]).astype("<i8").tobytes())
            advance(int(sizes[number]))


def _numbers(store: Datastore) -> Callable[[Int64], Int64]:
    """From rows of the store to their numbers among those that aren't removed."""
    begins, lengths, first = [], [], 0
    for segment, hidden in zip(store.segments, store.hidden, strict=True):
        begins.append(hidden.begins + first)
        lengths.append(hidden.ends - hidden.begins)
        first += segment.rows
    starts, before = np.concatenate(begins), np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return lambda rows: rows - before[np.searchsorted(starts, rows, side="right")]


def _before_the_lists(quantiser: Quantiser, rows: int, nprobe: int) -> bytes:
    """The file's beginning as faiss writes it: all but the inverted lists, which come last."""
    axes, centroids, pq_bytes = quantiser.axes, quantiser.centroids, len(quantiser.codebooks)
    if axes is not None:
        centroids = rotate(centroids, axes)
    nlist, dimension = centroids.shape
    coarse = faiss.IndexFlatL2(dimension)
    coarse.add(centroids)
    index = faiss.IndexIVFPQ(coarse, dimension, nlist, pq_bytes, 8)
    faiss.copy_array_to_vector(quantiser.codebooks.ravel(), index.pq.centroids)
    index.is_trained, index.ntotal, index.nprobe = True, rows, nprobe
    whole = index if axes is None else _behind(axes, index)
    data = faiss.serialize_index(whole).tobytes()
    empty = struct.pack(_FORM, b"ilar", nlist, pq_bytes, b"sprs", 0)
    if not data.endswith(empty):
        raise NotImplementedError(f"faiss {faiss.__version__} writes inverted lists in another form than this knows")
    return data[: -len(empty)]


def _behind(axes: Float32, index: Any) -> Any:
    """The index behind the rotation of keys and queries, float32 (d, kept): as faiss's factory says, ``OPQ…,IVF…,PQ…``.

    Where the rotation drops dimensions faiss chooses the lists without them as well.
    """
    dimension, kept = axes.shape
    rotation = faiss.LinearTransform(dimension, kept, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(axes.T).ravel(), rotation.A)
    rotation.is_trained = True
    whole = faiss.IndexPreTransform(rotation, index)
    whole.is_trained, whole.ntotal = True, index.ntotal
    return whole
