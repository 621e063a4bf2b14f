"""Find the longest suffix of each context that occurs in the store, and the tokens that followed it there."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.arrays import Int64, Uint64
from knnstore.mixing.matches import Matches
from knnstore.suffix_array.contexts import DEPTH, Packing, Stream

_AROUND = 8  # entries compared on either side of a context's place in the order
FREQUENT = 8  # minimum occurrences of a frequent suffix
_MOST_FOLLOWERS = 64
MATCH_BYTES = 3000  # temporary memory per context during a search


@dataclass(frozen=True, slots=True, eq=False)
class Suffixes:
    """A stream and its positions sorted by their contexts."""

    stream: Stream
    order: Stream
    packing: Packing

    def matches(self, contexts: Any) -> tuple[Matches, Matches]:
        """Return matches of the longest suffix of each context, and of the longest that occurs FREQUENT times.

        ``contexts``: int64 (n, DEPTH), last token first, as returned by ``contexts_of``.
        """
        words = self.packing.query_words(contexts)
        # In a sorted order, the entries that share most tokens with a context surround its place. The n-th largest
        # number of shared tokens is therefore the length of the longest suffix that occurs at least n times.
        place = self._bound(words, np.full(len(contexts), DEPTH), after=False)
        shared = np.sort(self._shared(words, place), axis=1)[:, ::-1]
        longest, frequent = shared[:, 0], shared[:, FREQUENT - 1]
        return self._matches(words, longest), self._matches(words, frequent)

    def occurrences(self, contexts: Any) -> tuple[Int64, Int64]:
        """Return the entries ``[begin, end)`` of ``order`` with these contexts, int64 (n,) each.

        ``contexts``: int64 (n, DEPTH), last token first.
        """
        words, length = self.packing.query_words(contexts), np.full(len(contexts), DEPTH)
        return self._bound(words, length, after=False), self._bound(words, length, after=True)

    def _matches(self, words: Uint64, length: Int64) -> Matches:
        begin, end = self._bound(words, length, after=False), self._bound(words, length, after=True)
        end = np.where(length > 0, end, begin)
        count = end - begin
        steps = np.arange(_MOST_FOLLOWERS)
        taken = np.minimum(count, _MOST_FOLLOWERS)
        # all entries or evenly spaced ones, because adjacent entries have similar contexts
        index = begin[:, None] + np.where(count[:, None] > len(steps), steps * count[:, None] // len(steps), steps)
        present = steps < taken[:, None]
        followers = np.full(index.shape, -1, np.int64)
        followers[present] = self.stream.take(self.order.take(index[present]).astype(np.int64))
        return Matches(length, count, followers)

    def _shared(self, words: Uint64, place: Int64) -> Int64:
        """Return how many tokens each context shares with the entries around its place: int64 (n, 2 · _AROUND)."""
        columns = []
        for offset in range(-_AROUND, _AROUND):
            index = place + offset
            inside = (index >= 0) & (index < self.order.shape[0])
            positions = self.order.take(np.clip(index, 0, self.order.shape[0] - 1)).astype(np.int64)
            columns.append(np.where(inside, self._common(words, positions), 0))
        return np.stack(columns, axis=1)

    def _common(self, words: Uint64, positions: Int64) -> Int64:
        """Return how many tokens each context shares with the context of a position: int64 (n,)."""
        common = np.zeros(len(positions), np.int64)
        equal = np.arange(len(positions))  # pairs that are equal in all words so far
        for number in range(self.packing.words):
            differ = self.packing.word_at(self.stream, positions[equal], number) ^ words[number, equal]
            same = np.zeros(len(equal), np.int64)
            for token in range(self.packing.tokens):
                prefix = self.packing.mask(np.full(len(equal), token + 1), 0)
                same += (differ & prefix) == 0
            common[equal] += same
            equal = equal[same == self.packing.tokens]
            if not len(equal):
                break
        return common

    def _bound(self, words: Uint64, length: Int64, *, after: bool) -> Int64:
        """Return the first entry at or after the first ``length`` tokens of each context; if ``after``, after them."""
        low, high = np.zeros(len(length), np.int64), np.full(len(length), self.order.shape[0], np.int64)
        active = np.flatnonzero(low < high)
        while len(active):
            middle = (low[active] + high[active]) // 2
            sign = self._compare(words[:, active], length[active], self.order.take(middle).astype(np.int64))
            before = sign < 0 if not after else sign <= 0
            low[active] = np.where(before, middle + 1, low[active])
            high[active] = np.where(before, high[active], middle)
            active = active[low[active] < high[active]]
        return low

    def _compare(self, words: Uint64, length: Int64, positions: Int64) -> Int64:
        """Return −1, 0 or 1 for entries whose contexts are before, equal to or after the first ``length`` tokens."""
        sign = np.zeros(len(positions), np.int64)
        equal = np.arange(len(positions))  # pairs that are equal in all words so far
        for number in range(self.packing.words):
            mask = self.packing.mask(length[equal], number)
            entry = self.packing.word_at(self.stream, positions[equal], number) & mask
            query = words[number, equal] & mask
            sign[equal] = np.where(entry < query, -1, np.where(entry > query, 1, 0))
            equal = equal[(entry == query) & (length[equal] > (number + 1) * self.packing.tokens)]
            if not len(equal):
                break
        return sign
