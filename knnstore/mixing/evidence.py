"""What is known at positions of a text before their tokens are, and what each source of a mixture makes of it.

NumPy only. Shapes: n positions, k neighbours, m tokens named by a source.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.arrays import Bool, Float32, Int64
from knnstore.mixing.cache import CacheScores
from knnstore.mixing.features import Outlook, lm_features, match_features, store_features
from knnstore.mixing.gate import MemorySource
from knnstore.mixing.knn import neighbour_weights, target_probabilities
from knnstore.mixing.matches import Matches
from knnstore.neighbours import ABSENT, Neighbours


@dataclass(frozen=True, slots=True, eq=False)
class SparseDistribution:
    """Distributions over tokens at n positions, of which only the tokens with a probability are named.

    ``tokens``: int64 (n, m), −1 where fewer are named; a token may be named several times. ``p``: float32 (n, m), the
    probability that each adds; a row sums to 1, or is all 0 where the source says nothing.
    """

    tokens: Int64
    p: Float32

    @property
    def says(self) -> Bool:
        """Bool (n,): where the source says anything."""
        return np.asarray(self.p.any(axis=1))

    def of(self, targets: Int64) -> Float32:
        """Return the parts of p that belong to each position's target, int64 (n,), 0 for the others: float32 (n, m)."""
        parts: Float32 = np.where(self.tokens == targets[:, None], self.p, np.float32(0))
        return parts


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known at n positions of a text before their tokens are.

    ``neighbours``: the nearest keys. ``outlook``: what the LM expects; only a gate needs it. ``matches``: the longest
    suffix of each context that occurs in the store and the longest frequent one, None without an exact-match memory.
    With a cache either ``pairs``, the document's remembered pairs, or ``cache``, p_cache of the text's own tokens.
    """

    neighbours: Neighbours
    outlook: Outlook | None = None
    cache: CacheScores | None = None
    matches: tuple[Matches, Matches] | None = None
    pairs: Neighbours | None = None

    def __len__(self) -> int:
        return len(self.neighbours)

    def select(self, places: Int64) -> "Evidence":
        """Return what is known at some of the positions, each as often as it is named."""
        outlook, cache, matches, pairs = self.outlook, self.cache, self.matches, self.pairs
        return Evidence(
            self.neighbours.select(places),
            outlook and Outlook(outlook.entropy[places], outlook.leading[places], outlook.leading_log_p[places]),
            cache and CacheScores(cache.p[places], cache.temperatures),
            matches and (matches[0].select(places), matches[1].select(places)),
            None if pairs is None else pairs.select(places),
        )

    def features(self, spread: float, k: int) -> Float32:
        """Return the features for a gate of the ``k`` nearest, FEATURES or FEATURES_WITH_MATCHES: float32 (n, F)."""
        assert self.outlook is not None
        parts = [lm_features(self.outlook), store_features(self.outlook, self.neighbours.nearest(k), spread)]
        return np.concatenate([*parts, *map(match_features, self.matches or ())], axis=1)

    def probability(self, source: MemorySource, targets: Int64, log_lm: Any) -> Float32:
        """Return p of each target, int64 (n,), by a source: float32 (n,); the LM's own where it says nothing.

        ``log_lm``: ln p_LM of the targets, float (n,). Of a cache with ``CacheScores`` the targets are the text's own.
        """
        if source.kind == "store":
            return self.store_p(targets, log_lm, (source.k,), (source.temperature,))[:, 0, 0]
        return _or_lm(self.target_p(source, targets), log_lm)

    def target_p(self, source: MemorySource, targets: Int64) -> Float32:
        """Return p of each target by the cache or by a match: float32 (n,), NaN where it says nothing."""
        if source.kind == "cache" and self.cache is not None:
            return self.cache.at(source.temperature)
        if source.kind == "cache":
            distribution = self.distribution(source)
            return np.where(distribution.says, distribution.of(targets).sum(axis=1), np.float32(np.nan))
        assert self.matches is not None
        return self.matches[source.kind == "frequent"].probability(targets)

    def store_p(self, targets: Int64, log_lm: Any, ks: tuple[int, ...], temperatures: tuple[float, ...]) -> Float32:
        """Return p_kNN of each target: float32 (n, ks, temperatures); the LM's own where nothing was found."""
        p = target_probabilities(self.neighbours, targets, ks, temperatures)
        missing = ~self.neighbours.found
        p[missing] = np.exp(log_lm[missing])[:, None, None]
        return p

    def distribution(self, source: MemorySource) -> SparseDistribution:
        """Return what a source says of every token."""
        if source.kind in ("longest", "frequent"):
            assert self.matches is not None
            followers = self.matches[source.kind == "frequent"].followers  # (n, m)
            there = followers != ABSENT
            p = there / np.maximum(there.sum(axis=1, keepdims=True), 1)
            return SparseDistribution(followers, p.astype(np.float32))
        pairs = self.neighbours.nearest(source.k) if source.kind == "store" else self.pairs
        assert pairs is not None
        return SparseDistribution(pairs.values, neighbour_weights(pairs, source.temperature))


def _or_lm(p: Float32, log_lm: Any) -> Float32:
    return np.asarray(np.where(np.isnan(p), np.exp(log_lm), p), np.float32)
