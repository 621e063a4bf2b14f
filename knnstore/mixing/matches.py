"""Exact matches: what followed the longest suffixes of a context where they occur in the store (NumPy only)."""

from dataclasses import dataclass

import numpy as np

from knnstore.arrays import Float32, Int64


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Suffixes of n contexts that occur in the store.

    ``length``: int64 (n,), tokens of the suffix, 0 if not even the last token occurs. ``count``: int64 (n,), how often
    it occurs. ``followers``: int64 (n, m), the tokens after (a fair sample of) its occurrences, −1 beyond them.
    """

    length: Int64
    count: Int64
    followers: Int64

    def select(self, places: Int64) -> "Matches":
        """Return those of some of the contexts."""
        return Matches(self.length[places], self.count[places], self.followers[places])

    def probability(self, tokens: Int64) -> Float32:
        """Return the share of each token among its followers: float32 (n,); NaN where there are none."""
        there = (self.followers >= 0).sum(axis=1)  # (n,)
        hits = (self.followers == tokens[:, None]).sum(axis=1)  # (n,)
        share = np.full(len(tokens), np.nan, np.float32)
        np.divide(hits, there, out=share, where=there > 0, casting="unsafe")
        return share
