"""Find verbatim overlaps of token sequences: runs of at least LENGTH tokens that occur in both texts.

Every window of LENGTH tokens of one text is hashed and kept in a sorted table. A pass over the other text hashes its
windows with the same polynomial, in a few vector operations per block, and looks them up. Matches are compared token by
token, so that hash collisions are never reported.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from knnstore.arrays import Bool, Int64, Uint64

LENGTH = 50
MOST_WINDOWS = 2**20
"""Maximum number of windows per table: 40 MB including the sort."""

_BLOCK = 2**14  # windows hashed at a time, so that they fit in the processor's cache
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_WORD = 2**64
_MOST_BITS = 24
_SPARE_BITS = 4  # at most one in 16 entries of a filter is set, so one window in 256 passes both filters by chance


class Shingles:
    """The windows of LENGTH tokens of a text, to find in other texts.

    ``starts``: int64 (n,), ascending start positions. Equal windows form a group: ``group`` is the group number of each
    window, int64 (n,), from 0.
    """

    def __init__(self, ids: Any, starts: Int64) -> None:
        """``ids``: the token ids of the text (tokens,)."""
        self.starts = starts
        self._windows = _windows_of(ids) if len(starts) else np.empty((0, LENGTH), np.uint32)
        hashes = np.concatenate([np.empty(0, np.uint64), *(block for _, block in _hashed(ids))])[starts]
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        fresh = np.ones(len(hashes), np.bool_)
        fresh[1:] = hashes[1:] != hashes[:-1]
        self._hashes = hashes[fresh]
        self._first = starts[order[fresh]]
        self.group = np.empty(len(starts), np.int64)
        self.group[order] = np.cumsum(fresh) - 1
        self._bits = np.uint64(min(self.groups.bit_length() + _SPARE_BITS, _MOST_BITS))
        self._filters = np.zeros((2, 1 << int(self._bits)), np.bool_)
        for half in range(2):
            self._filters[half][self._bits_of(self._hashes, half)] = True

    @property
    def groups(self) -> int:
        """Return the number of different windows."""
        return len(self._hashes)

    def find(self, ids: Any) -> Iterator[tuple[Int64, Int64]]:
        """Yield where windows of the text occur in ``ids`` (tokens,): ascending positions and groups, int64 (m,)."""
        if not self.groups:
            return
        for begin, hashes in _hashed(ids):
            maybe = np.flatnonzero(self._filters[0].take(self._bits_of(hashes, 0)))
            maybe = maybe[self._filters[1].take(self._bits_of(hashes[maybe], 1))]
            group = np.minimum(np.searchsorted(self._hashes, hashes[maybe]), self.groups - 1)
            same = self._hashes[group] == hashes[maybe]
            places, group = maybe[same] + begin, group[same]
            if len(places):
                equal = (_windows_of(ids)[places] == self._windows[self._first[group]]).all(axis=1)
                yield places[equal], group[equal]

    def _bits_of(self, hashes: Uint64, half: int) -> Int64:
        """Return the highest bits of each hash or, for ``half`` 1, those below them: filter entries, int64 (n,)."""
        bits = (hashes << self._bits * np.uint64(half)) >> np.uint64(64) - self._bits
        return bits.view(np.int64)


def window_starts(first: Int64, tokens: Int64, begin: int, end: int) -> Int64:
    """Return the positions in ``[begin, end)`` at which windows within one document start: int64, ascending.

    ``first``, ``tokens``: int64 (documents,), start and length of consecutive documents.
    """
    places = np.arange(begin, end)
    ends = first + tokens
    return places[places + LENGTH <= ends[np.searchsorted(ends, places, side="right")]]


def covered(starts: Int64, tokens: int) -> Bool:
    """Return which tokens are in a window that begins at one of ``starts``: bool (tokens,)."""
    steps = np.zeros(tokens + 1, np.int32)
    np.add.at(steps, starts, 1)
    np.subtract.at(steps, starts + LENGTH, 1)
    inside: Bool = np.cumsum(steps[:-1], dtype=np.int32) > 0
    return inside


def _windows_of(ids: Any) -> Any:
    """Return a view of all windows, (windows, LENGTH)."""
    return np.lib.stride_tricks.sliding_window_view(ids, LENGTH)


def _hashed(ids: Any) -> Iterator[tuple[int, Uint64]]:
    """Yield the hashes of all windows by block: number of the first window, and uint64 (windows,).

    The hash of tokens t is Σ (t[i] + 1) · BASE**i modulo 2**64. It is a difference of two prefix sums over the block,
    multiplied by an inverse power of BASE so that the exponents start at 0 in every window.
    """
    powers, inverses = _powers()
    for begin in range(0, len(ids) - LENGTH + 1, _BLOCK):
        block = ids[begin : begin + _BLOCK + LENGTH - 1].astype(np.uint64)
        block += np.uint64(1)
        block *= powers[: len(block)]
        sums = np.cumsum(block, out=block)
        hashes = sums[LENGTH - 1 :].copy()
        hashes[1:] -= sums[:-LENGTH]
        hashes *= inverses[: len(hashes)]
        yield begin, hashes


@lru_cache(maxsize=1)
def _powers() -> tuple[Uint64, Uint64]:
    """Return BASE**i and its inverse modulo 2**64 for every position in a block."""
    inverse = pow(_BASE, -1, _WORD)
    both = []
    for base in (_BASE, inverse):
        factors = np.full(_BLOCK + LENGTH, base, np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors, dtype=np.uint64))
    return both[0], both[1]
