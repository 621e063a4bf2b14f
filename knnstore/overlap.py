"""Verbatim overlaps of token sequences: runs of at least LENGTH tokens that two texts have in common.

Every window of LENGTH tokens of one text is hashed and kept in a sorted table; a pass over the other text hashes each
of its windows by the same polynomial, in a few vector operations a block, and looks it up. What the table seems to hold
is compared token by token, so that no collision is ever reported.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

UInt64 = np.ndarray[Any, np.dtype[np.uint64]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]
Bool = np.ndarray[Any, np.dtype[np.bool_]]

LENGTH = 50
MOST_WINDOWS = 2**20
"""Windows that a table is made of at a time: 40 MB with the sort."""

_BLOCK = 2**14  # windows hashed at a time: what they take fits a processor's cache
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_WORD = 2**64
_MOST_BITS = 24
_SPARE_BITS = 4  # of the entries of a filter one in 16 is set, at most: of two filters, one window in 256 passes both


class Windows:
    """The windows of LENGTH tokens of a text, to be found in others.

    ``starts``: int64 (n,) ascending, where the windows begin. Equal windows form a group: ``group`` is the number of
    each window's, int64 (n,), from 0.
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
        """How many windows differ from each other."""
        return len(self._hashes)

    def find(self, ids: Any) -> Iterator[tuple[Int64, Int64]]:
        """Where windows of the text stand in ``ids`` (tokens,): places, ascending, and groups, int64 (m,) each."""
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

    def _bits_of(self, hashes: UInt64, half: int) -> Int64:
        """The highest bits of each hash, or (``half`` 1) those below them: entries of the filters, int64 (n,)."""
        bits = (hashes << self._bits * np.uint64(half)) >> np.uint64(64) - self._bits
        return bits.view(np.int64)


def window_starts(first: Int64, tokens: Int64, begin: int, end: int) -> Int64:
    """Where, in ``[begin, end)``, windows begin that lie within one document: int64, ascending.

    ``first``, ``tokens``: int64 (documents,), where each begins and how long it is; they follow each other.
    """
    places = np.arange(begin, end)
    ends = first + tokens
    return places[places + LENGTH <= ends[np.searchsorted(ends, places, side="right")]]


def covered(starts: Int64, tokens: int) -> Bool:
    """Which tokens lie in a window that begins at one of ``starts``: bool (tokens,)."""
    steps = np.zeros(tokens + 1, np.int32)
    np.add.at(steps, starts, 1)
    np.subtract.at(steps, starts + LENGTH, 1)
    inside: Bool = np.cumsum(steps[:-1], dtype=np.int32) > 0
    return inside


def _windows_of(ids: Any) -> Any:
    """A view of all windows, (windows, LENGTH)."""
    return np.lib.stride_tricks.sliding_window_view(ids, LENGTH)


def _hashed(ids: Any) -> Iterator[tuple[int, UInt64]]:
    """Hashes of all windows, a block at a time: the first window's number, and uint64 (windows,).

    The hash of tokens t is Σ (t[i] + 1) · BASE**i modulo 2**64: a difference of prefix sums, brought to one exponent.
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
def _powers() -> tuple[UInt64, UInt64]:
    """BASE**i and its inverse modulo 2**64, of every place in a block."""
    inverse = pow(_BASE, -1, _WORD)
    both = []
    for base in (_BASE, inverse):
        factors = np.full(_BLOCK + LENGTH, base, np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors, dtype=np.uint64))
    return both[0], both[1]
