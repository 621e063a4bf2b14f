"""Two-level k-means: √nlist cells, then centroids within each cell, in proportion to its keys.

Trains 4096 lists about 25 times faster than a single level, at the same recall.
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
    """Return cells ``(cells, d)`` and centroids ``(nlist, d)``, float32, of ``rows`` training keys.

    ``take(indices)`` returns float32 keys ``(len(indices), d)``; only one cell's keys are decoded at a time. Cells, and
    the centroids within a cell, are in the order of ``chain``, so that lists that are searched together are mostly
    stored together. Requires nlist <= rows; equal keys give equal centroids. ``advance`` is called with the number of
    rows done.
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
            clusters = kmeans(of_cell, int(shares[cell]), seed)
            centroids.append(clusters[chain(clusters, last)])
            last = centroids[-1][-1]
        advance(int(counts[cell]))
    return coarse, np.concatenate(centroids)


def chain(points: Float32, start: Float32) -> Int64:
    """Order points (n, d) greedily, int64 (n,): the nearest to ``start`` (d,), then always the nearest remaining point.

    Lists are numbered, and therefore stored, in this order. The chain of each cell starts at the end of the previous
    one, so that consecutive lists are near each other across cells as well::

        | cell 4:  a → b → c | → | cell 2:  d → e | → | cell 7:  f → g → h |
    """
    order = np.empty(len(points), np.int64)
    norms, current = np.einsum("nd,nd->n", points, points), start
    for place in range(len(points)):
        order[place] = nearest = int(np.argmin(norms - 2 * (points @ current)))
        norms[nearest], current = np.inf, points[nearest]
    return order


def kmeans(points: Float32, clusters: int, seed: int) -> Float32:
    """Return centroids, float32 ``(clusters, d)``, of points ``(n, d)`` with n >= clusters."""
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
    """Divide ``total`` in proportion to ``counts``, whose sum must be at least as large; no share exceeds its count."""
    everything = int(counts.sum())
    quotients, remainders = np.divmod(counts.astype(np.int64) * total, everything)
    order = np.lexsort((np.arange(len(counts)), -remainders))
    quotients[order[: total - int(quotients.sum())]] += 1
    shares: Int64 = quotients
    return shares


def coarse_rows(rows: int, cells: int) -> int:
    """Return the number of keys that the cells are trained on."""
    return min(rows, cells * _POINTS_A_CELL)


def assign_flat(keys: Float32, centroids: Float32) -> Int64:
    """Return the nearest centroid of each key, by comparison with all of them: int64 ``(n,)``."""
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    return np.asarray(index.search(keys, 1)[1][:, 0])


def _assign_all(take: Callable[[Int64], Float32], rows: int, centroids: Float32) -> Int64:
    blocks = [np.arange(begin, min(begin + _BLOCK, rows)) for begin in range(0, rows, _BLOCK)]
    return np.concatenate([assign_flat(take(block), centroids) for block in blocks])
