"""The index as a file that faiss reads: ``IndexIVFPQ`` with the store's row numbers as ids.

faiss itself can write such a file only from lists that are in memory. Here it writes all but the lists, and they
follow from the memory-mapped ones, in the form that ``faiss.read_index`` expects; so the size is bounded by the disk.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from knnstore.atomic import storage_errors
from knnstore.datastore.store import Datastore
from knnstore.errors import UnfinishedError
from knnstore.index.lists import SegmentLists
from knnstore.index.plan import open_index, require_same_segments
from knnstore.index.quantiser import Int64, Quantiser, load_quantiser

# Inverted lists that are all empty: tag, number of lists, bytes a code, "sparse", and a vector of no sizes.
_EMPTY = "<4sQQ4sQ"
_FULL = "<4sQQ4sQ"


def faiss_bytes(store: Datastore) -> int:
    """About how many bytes the file will take. Raises UnfinishedError without an index."""
    plan = open_index(store.root, _index_name(store)).plan
    return plan.rows * (plan.pq_bytes + 8) + plan.nlist * (plan.dimension * 4 + 8)


def write_faiss(store: Datastore, path: Path, advance: Callable[[float], None]) -> None:
    """Write the store's index to ``path``; ``advance`` is told of keys.

    Raises UnfinishedError without an index, MismatchError for one of other segments, ResourceError if it can't be
    written.
    """
    folder = open_index(store.root, _index_name(store))
    require_same_segments(folder.plan, store)
    plan, parts, first_row = folder.plan, list[SegmentLists](), 0
    for segment, reference in zip(store.segments, plan.segments, strict=True):
        parts.append(SegmentLists(folder, segment, reference, first_row))
        first_row += reference.rows
    sizes: Int64 = np.stack([np.diff(part.offsets) for part in parts]).sum(axis=0)
    with storage_errors("write", path), path.open("wb") as file:
        file.write(_before_the_lists(load_quantiser(folder), plan.rows, plan.nprobe))
        file.write(struct.pack(_FULL, b"ilar", plan.nlist, plan.pq_bytes, b"full", plan.nlist))
        file.write(sizes.astype("<u8").tobytes())
        for number in range(plan.nlist):
            bounds = [(part, *part.bounds(number)) for part in parts]
            for part, begin, end in bounds:
                file.write(part.codes.rows(begin, end).tobytes())
            for part, begin, end in bounds:
                file.write(part.store_rows(begin, end).astype("<i8").tobytes())
            advance(int(sizes[number]))


def _index_name(store: Datastore) -> str:
    if store.manifest.index is None:
        raise UnfinishedError(f"{store.root} has no finished index: run 'knnstore index --store {store.name}'")
    return store.manifest.index


def _before_the_lists(quantiser: Quantiser, rows: int, nprobe: int) -> bytes:
    """The file's beginning as faiss writes it: all but the inverted lists, which come last."""
    nlist, dimension = quantiser.centroids.shape
    pq_bytes = len(quantiser.codebooks)
    coarse = faiss.IndexFlatL2(dimension)
    coarse.add(quantiser.centroids)
    index = faiss.IndexIVFPQ(coarse, dimension, nlist, pq_bytes, 8)
    faiss.copy_array_to_vector(quantiser.codebooks.ravel(), index.pq.centroids)
    index.is_trained, index.ntotal, index.nprobe = True, rows, nprobe
    data = faiss.serialize_index(index).tobytes()
    empty = struct.pack(_EMPTY, b"ilar", nlist, pq_bytes, b"sprs", 0)
    if not data.endswith(empty):
        raise NotImplementedError(f"faiss {faiss.__version__} writes inverted lists in another form than this knows")
    return data[: -len(empty)]
