"""Export the index to a file for faiss: ``IndexIVFPQ`` with row numbers as ids.

faiss can write such a file only from lists in memory. Here, faiss writes everything before the lists, and the lists
are appended from the memory-mapped arrays in the format that ``faiss.read_index`` expects, so that only the disk limits
the size.
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

# Header of inverted lists: tag, number of lists, bytes per code, whether all sizes follow or only a few, their number.
_FORM = "<4sQQ4sQ"


def faiss_bytes(store: Datastore) -> int:
    """Return the approximate size of the file in bytes. Raises UnfinishedError without an index."""
    plan = Searcher(store).plan
    return store.live_rows * (plan.pq_bytes + 8) + plan.nlist * (plan.dimension * 4 + 8)


def write_faiss(store: Datastore, path: Path, advance: Callable[[float], None]) -> None:
    """Write the store's index to ``path``; ``advance`` is called with the number of keys written.

    Removed documents are omitted, and an id is the number of a row among the remaining rows. Raises the errors of
    ``Searcher``, and ResourceError if the file can't be written.
    """
    searcher = Searcher(store)
    plan, parts = searcher.plan, searcher.parts
    numbers = _numbers(store)
    sizes: Int64 = np.stack([part.live for part in parts]).sum(axis=0)
    with storage_errors("write", path), path.open("wb") as file:
        file.write(_header(searcher.quantiser, store.live_rows, plan.nprobe))
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
    """Return a function from rows of the store to their numbers among the rows that aren't removed."""
    begins, lengths, first = [], [], 0
    for segment, hidden in zip(store.segments, store.hidden, strict=True):
        begins.append(hidden.begins + first)
        lengths.append(hidden.ends - hidden.begins)
        first += segment.rows
    starts, before = np.concatenate(begins), np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return lambda rows: rows - before[np.searchsorted(starts, rows, side="right")]


def _header(quantiser: Quantiser, rows: int, nprobe: int) -> bytes:
    """Return the start of the file as faiss writes it: everything before the inverted lists, which come last."""
    axes, centroids, pq_bytes = quantiser.axes, quantiser.centroids, len(quantiser.codebooks)
    if axes is not None:
        centroids = rotate(centroids, axes)
    nlist, dimension = centroids.shape
    coarse = faiss.IndexFlatL2(dimension)
    coarse.add(centroids)
    index = faiss.IndexIVFPQ(coarse, dimension, nlist, pq_bytes, 8)
    faiss.copy_array_to_vector(quantiser.codebooks.ravel(), index.pq.centroids)
    index.is_trained, index.ntotal, index.nprobe = True, rows, nprobe
    whole = index if axes is None else _with_rotation(index, axes)
    data = faiss.serialize_index(whole).tobytes()
    empty = struct.pack(_FORM, b"ilar", nlist, pq_bytes, b"sprs", 0)
    if not data.endswith(empty):
        raise NotImplementedError(f"faiss {faiss.__version__} writes inverted lists in an unknown format")
    return data[: -len(empty)]


def _with_rotation(index: Any, axes: Float32) -> Any:
    """Return the index preceded by the rotation ``axes`` (d, kept) of keys and queries, as in ``OPQ…,IVF…,PQ…``.

    If the rotation drops dimensions, faiss chooses the lists without them as well.
    """
    dimension, kept = axes.shape
    rotation = faiss.LinearTransform(dimension, kept, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(axes.T).ravel(), rotation.A)
    rotation.is_trained = True
    whole = faiss.IndexPreTransform(rotation, index)
    whole.is_trained, whole.ntotal = True, index.ntotal
    return whole
