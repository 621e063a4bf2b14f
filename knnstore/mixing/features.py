"""Features of a prediction from which a gate weighs the sources (NumPy only).

All of them are known before the token is, and cost no search: the LM has given its distribution, the neighbours have
been found. Shapes: n predictions, k neighbours each, m leading tokens of the LM.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.arrays import Bool, Float32, Int64
from knnstore.mixing.knn import votes
from knnstore.mixing.matches import Matches
from knnstore.neighbours import ABSENT, Neighbours

# The temperatures at which the neighbours' vote is looked at, as multiples of the typical spread of distances.
_SHARP, _SOFT = 1 / 16, 1 / 4
_DISTINCT_AT = (8, 64)
_QUERIES_AT_ONCE = 1024
_TINY = 1e-6

LM_FEATURES = ("lm_entropy", "lm_log_top", "lm_log_second", "lm_mass_leading")
STORE_FEATURES = (
    "first_distance",
    "log_first_distance",
    "last_distance",
    "spread",
    "distinct_8",
    "distinct_64",
    "distinct_all",
    *(
        f"{name}_{sharpness}"
        for sharpness in ("sharp", "soft")
        for name in ("store_log_top", "store_entropy", "store_log_of_lm_top", "lm_log_of_store_top", "overlap")
    ),
)
MATCH_FEATURES = tuple(
    f"{kind}_{name}"
    for kind in ("longest", "frequent")
    for name in ("length", "log_length", "log_count", "distinct", "top")
)
FEATURES = (*LM_FEATURES, *STORE_FEATURES)
FEATURES_WITH_MATCHES = (*FEATURES, *MATCH_FEATURES)
_LONG = 16  # tokens of a match beyond which its length says nothing more


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """What an LM expects at n positions.

    ``entropy``: float32 (n,), nats, of its distribution. ``leading``: int64 (n, m), its m most probable tokens, best
    first; ``leading_log_p``: float32 (n, m), their ln p.
    """

    entropy: Float32
    leading: Int64
    leading_log_p: Float32


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """The neighbours of n queries, grouped by query and, within a query, by value.

    ``distances``: float32 (n, k), less the query's first, in the order of the groups. ``begins``: int64 (groups,),
    where a group of equal values begins among all n · k. ``query``: int64 (groups,), the query that a group belongs
    to; ``starts``: int64 (n,), each query's first group. ``ids``: int64 (groups,), ascending:
    ``query`` · ``width`` + value − ABSENT.
    """

    distances: Float32
    begins: Int64
    ids: Int64
    query: Int64
    starts: Int64
    width: int

    @classmethod
    def of(cls, distances: Float32, values: Int64) -> "_Groups":
        n, k = values.shape
        bits = max(1, (k - 1).bit_length())
        # value above place: one sort of integers groups the values and remembers where each neighbour stood
        packed = (values - ABSENT) << bits | np.arange(k)  # (n, k)
        packed = packed.astype(np.min_scalar_type(int(packed.max(initial=0))))
        packed.sort(axis=1)
        ordered, slots = (packed >> bits).astype(np.int64), (packed & (2**bits - 1)).astype(np.int64)
        beyond = np.take_along_axis(distances - distances[:, :1], slots, 1)
        changes = np.ones(ordered.shape, bool)
        changes[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        begins = np.flatnonzero(changes)
        query = begins // k
        width = int(ordered.max(initial=0)) + 1
        ids = query * width + ordered.reshape(-1)[begins]
        return cls(beyond, begins, ids, query, np.searchsorted(query, np.arange(n)), width)

    def find(self, values: Int64) -> tuple[Int64, Bool]:
        """Return the groups of some values (n, m) of each query, int64 (n, m), and whether they exist, bool (n, m)."""
        ids = np.arange(len(values))[:, None] * self.width + (values - ABSENT)
        groups = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return groups, (self.ids[groups] == ids) & (values - ABSENT < self.width)

    def mass(self, temperature: float) -> Float32:
        """Return p_kNN of each group's value, float32 (groups,)."""
        weights = votes(self.distances, np.float32(0), temperature)  # (n, k)
        weights /= weights.sum(axis=1, keepdims=True)
        return np.asarray(np.add.reduceat(weights.reshape(-1), self.begins))


def lm_features(outlook: Outlook) -> Float32:
    """Return what the LM alone knows: float32 (n, LM_FEATURES)."""
    log_p = outlook.leading_log_p
    columns = [outlook.entropy, log_p[:, 0], log_p[:, min(1, log_p.shape[1] - 1)], np.exp(log_p).sum(axis=1)]
    return np.stack(columns, axis=1).astype(np.float32)


def store_features(outlook: Outlook, neighbours: Neighbours, spread: float) -> Float32:
    """Return how near the neighbours are, how far they agree, and whether with the LM: float32 (n, STORE_FEATURES).

    Args:
        outlook: what the LM expects.
        neighbours: of the same n queries; those of a query that has none are all zero.
        spread: the typical d_k − d_1, the unit of distances and temperatures.
    """
    result = np.zeros((len(neighbours), len(STORE_FEATURES)), np.float32)
    for begin in range(0, len(neighbours), _QUERIES_AT_ONCE):
        rows = begin + np.flatnonzero(neighbours.found[begin : begin + _QUERIES_AT_ONCE])
        if len(rows):
            result[rows] = _block_features(
                outlook.leading[rows],
                outlook.leading_log_p[rows],
                neighbours.distances[rows],
                neighbours.values[rows],
                spread,
            )
    return result


def match_features(matches: Matches) -> Float32:
    """Return how long the matching suffixes are and how far what followed them agrees: float32 (n, 5)."""
    ordered = np.sort(matches.followers, axis=1)  # (n, followers)
    begins = np.ones(ordered.shape, bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    column = np.arange(ordered.shape[1])
    run = column - np.maximum.accumulate(np.where(begins, column, 0), axis=1) + 1
    there = ordered != ABSENT
    top = np.where(there, run, 0).max(axis=1) / np.maximum(there.sum(axis=1), 1)
    distinct = (begins & there).sum(axis=1)
    length = matches.length
    columns = [np.minimum(length, _LONG) / 4, np.log1p(length), np.log1p(matches.count), np.log1p(distinct), top]
    return np.stack(columns, axis=1).astype(np.float32)


def _block_features(leading: Int64, log_p: Float32, distances: Float32, values: Int64, spread: float) -> Any:
    first = distances[:, 0] / spread
    last = np.where(np.isfinite(distances), distances, 0).max(axis=1) / spread
    columns = [first, np.log(first + _TINY), last, last - first]
    columns += [np.log(_distinct(values[:, :count])) for count in _DISTINCT_AT]
    groups = _Groups.of(distances, values)
    columns.append(np.log(np.bincount(groups.query, minlength=len(values))))
    found = groups.find(leading)
    for multiple in (_SHARP, _SOFT):
        columns += _agreement(groups, groups.mass(spread * multiple), found, log_p)
    return np.stack(columns, axis=1)


def _distinct(values: Int64) -> Any:
    ordered = np.sort(values, axis=1)
    changes = (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1) + 1
    return np.maximum(changes - (ordered[:, 0] == ABSENT), 1)


def _agreement(groups: _Groups, mass: Float32, found: tuple[Int64, Any], log_p: Float32) -> list[Any]:
    """``found``: the groups of the LM's leading tokens, whose ln p is ``log_p``."""
    top = np.maximum.reduceat(mass, groups.starts)
    entropy = np.add.reduceat(-mass * np.log(mass + 1e-12), groups.starts)
    agree = np.where(found[1], mass[found[0]], np.float32(0))  # p_kNN of each of the leading tokens
    # ln p_LM of the store's first choice, or the least that is known
    chosen = found[1] & (agree >= top[:, None])
    of_top = np.where(chosen, log_p, np.inf).min(axis=1)
    of_top = np.where(chosen.any(axis=1), of_top, log_p[:, -1])
    overlap = np.minimum(agree, np.exp(log_p)).sum(axis=1)
    return [np.log(top + _TINY), entropy, np.log(agree[:, 0] + _TINY), of_top, overlap]
