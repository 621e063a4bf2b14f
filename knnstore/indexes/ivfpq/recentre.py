"""Recompute quantisers from the remaining keys, by one step of k-means over the existing lists.

A centroid is the mean of a few keys, or of a single outlier, so that quantisers can reveal removed keys. To leave no
trace of these, only the assignment of the remaining keys to lists is kept, and everything else is recomputed::

    lists      keep their remaining keys
    centroids  mean of a list's keys
    cells      mean of the keys in a cell's lists
    codebooks  trained on key − new centroid, with the axes of a rotation

Keys must be encoded again, but not assigned again. At most a sixteenth of the keys read is held back from all means and
codebooks, to measure the error of unseen keys.
"""

from collections.abc import Callable, Sequence

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.indexes.compute.stored import decode
from knnstore.indexes.ivfpq.kmeans import allot
from knnstore.indexes.ivfpq.lists import SegmentLists
from knnstore.indexes.ivfpq.plan import IvfPqPlan
from knnstore.indexes.ivfpq.quantiser import Quantiser, TrainingErrors
from knnstore.indexes.ivfpq.train import PQ_ROWS, mean_error, train_codes

_MOST_MEMBERS = 256  # keys of a list whose mean is its centroid; the head of a list is a random sample of it
_KEPT_BACK, _MOST_KEPT_BACK = 16, 4096  # hold back every sixteenth key of the concatenated lists, or fewer
_FAR = 16.0  # place of empty lists, in norms of the longest centroid


def recentre(
    quantiser: Quantiser, parts: Sequence[SegmentLists], plan: IvfPqPlan, advance: Callable[[int], None]
) -> tuple[Quantiser, TrainingErrors]:
    """Return the quantisers of the keys in ``parts`` that aren't hidden, and their errors.

    ``parts``: lists under ``quantiser``, with at least one key. ``plan``: plan of the new quantisers, for seed, code
    bytes and rotation. A list without keys gets a centroid that is farther from every key than all other centroids, so
    that it is probed last and stays empty. ``advance`` is called with the number of lists done.
    """
    live: Int64 = np.sum([part.live for part in parts], axis=0)
    quotas = allot(live, min(int(live.sum()), PQ_ROWS))
    members_in_all = int(np.minimum(live, np.maximum(_MOST_MEMBERS, quotas)).sum())
    every = max(_KEPT_BACK, -(-members_in_all // _MOST_KEPT_BACK))
    centroids, sample, kept_back, passed = np.empty_like(quantiser.centroids), [], [], 0
    for number in np.flatnonzero(live).tolist():
        members = _members(parts, number, max(_MOST_MEMBERS, int(quotas[number])))
        unseen = (np.arange(passed, passed + len(members)) + 1) % every == 0
        unseen[0] &= len(members) > 1
        passed += len(members)
        seen = members[~unseen]
        centroids[number] = seen.mean(axis=0, dtype=np.float64)
        quotas[number] = quota = min(int(quotas[number]), len(seen))
        sample.append(seen[np.arange(quota) * len(seen) // max(1, quota)])
        kept_back.append((members[unseen], np.full(unseen.sum(), number)))
        advance(1)
    cells = _cell_means(centroids, live, quantiser.coarse.cells_of_lists(), len(quantiser.cells))
    centroids[live == 0] = _beyond(centroids[live > 0])
    keys, lists = np.concatenate(sample), np.repeat(np.arange(len(live)), quotas)
    made = Quantiser(cells, centroids, *train_codes(plan, keys - centroids[lists]))
    others, other_lists = (np.concatenate(pieces) for pieces in zip(*kept_back, strict=True))
    unseen_error = mean_error(made, others, other_lists) if len(others) else None
    return made, TrainingErrors(mean_error(made, keys, lists), unseen_error)


def _members(parts: Sequence[SegmentLists], number: int, most: int) -> Float32:
    """Return about ``most`` keys of a list that aren't hidden, or all, in proportion per part: float32 (n, d)."""
    total, pieces = sum(int(part.live[number]) for part in parts), []
    for part in parts:
        share = -(-min(most, total) * int(part.live[number]) // total)
        if share:
            begin, end = part.bounds(number)
            kept = part.kept(begin, end)
            places = np.arange(share) if kept is None else kept[:share]
            pieces.append(decode(part.keys.take(begin + places), part.scales))
    return np.concatenate(pieces)


def _cell_means(centroids: Float32, live: Int64, cell_of: Int64, cells: int) -> Float32:
    """Return the mean of each cell's keys, from its lists' centroids and numbers of keys: float32 (cells, d)."""
    some = np.flatnonzero(live)
    sums = np.zeros((cells, centroids.shape[1]))
    np.add.at(sums, cell_of[some], live[some, None] * centroids[some].astype(np.float64))
    keys = np.bincount(cell_of[some], live[some], cells)
    means = (sums / np.maximum(keys, 1)[:, None]).astype(np.float32)
    means[keys == 0] = _beyond(centroids[some])
    return means


def _beyond(points: Float32) -> Float32:
    """Return a point that is farther from all points (n, d) than they are from each other: float32 (d,)."""
    place = np.zeros(points.shape[1], np.float32)
    place[0] = _FAR * max(1.0, float(np.sqrt(np.square(points, dtype=np.float64).sum(axis=1).max())))
    return place
