"""Contexts as packed words, read backwards from a position: what is sorted and what is searched for.

A stream is every document's tokens, each document behind a separator. The context of stream position p is
stream[p − 1], stream[p − 2], … : equal last n tokens are an equal beginning, so that in the order of the contexts all
places where the same n tokens stand lie side by side, for every n.
"""

from typing import Any, Protocol

import numpy as np

UInt64 = np.ndarray[Any, np.dtype[np.uint64]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]

DEPTH = 32  # tokens of a context that are told apart


class Stream(Protocol):
    """Tokens by position: a NumPy array, or one that is mapped from disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(positions,)."""

    def take(self, rows: Any) -> Any:
        """The tokens at some positions."""


class Packing:
    """How many tokens fit a 64-bit word, and ids that are no tokens: ``separator``, and ``nothing`` in a query."""

    def __init__(self, vocabulary: int) -> None:
        self.bits = 16 if vocabulary + 2 <= 2**16 else 32
        self.tokens = 64 // self.bits
        self.words = DEPTH // self.tokens
        self.separator = vocabulary
        self.nothing = vocabulary + 1
        self.dtype = np.dtype(np.uint16 if self.bits == 16 else np.uint32)

    def pack(self, tokens: Any) -> UInt64:
        """Words of tokens (n, tokens), the first in the highest bits: uint64 (n,)."""
        word = np.zeros(len(tokens), np.uint64)
        for column in range(self.tokens):
            word = word << np.uint64(self.bits) | tokens[:, column].astype(np.uint64)
        return word

    def word_at(self, stream: Stream, positions: Int64, number: int) -> UInt64:
        """The number-th word of the contexts of stream positions: uint64 (n,)."""
        first = positions - 1 - number * self.tokens
        back = first[:, None] - np.arange(self.tokens)
        tokens = np.where(back >= 0, stream.take(np.maximum(back, 0).reshape(-1)).reshape(back.shape), self.separator)
        return self.pack(tokens)

    def mask(self, lengths: Int64, number: int) -> UInt64:
        """Which bits of the number-th word belong to the first ``lengths`` tokens: uint64 (n,)."""
        kept = np.clip(lengths - number * self.tokens, 0, self.tokens)
        table = np.array(
            [((1 << 64) - 1) ^ ((1 << (self.bits * (self.tokens - count))) - 1) for count in range(self.tokens + 1)],
            np.uint64,
        )
        return table[kept]

    def query_words(self, contexts: Any) -> UInt64:
        """Words of contexts (n, DEPTH), last token first, ``nothing`` where a document begins: uint64 (words, n)."""
        return np.stack(
            [self.pack(contexts[:, number * self.tokens : (number + 1) * self.tokens]) for number in range(self.words)]
        )


def contexts_of(ids: Any, first: Int64, positions: Int64, nothing: int) -> Any:
    """The last DEPTH tokens before each position of ``ids``, last first: int64 (n, DEPTH).

    ``first``: where the document of each position begins in ``ids``; beyond it stands ``nothing``.
    """
    back = positions[:, None] - 1 - np.arange(DEPTH)
    return np.where(back >= first[:, None], ids[np.maximum(back, 0)].astype(np.int64), nothing)


def sorted_positions(stream: Stream, positions: Int64, packing: Packing) -> Int64:
    """Stream positions in the order of their contexts; of equal ones (to DEPTH tokens) the earlier first."""
    order = np.sort(positions)
    group = np.zeros(len(order), np.int64)  # ties so far: equal numbers, ascending
    tied = np.arange(len(order))
    for number in range(packing.words):
        words = packing.word_at(stream, order[tied], number)
        rearranged = np.lexsort((words, group[tied]))
        order[tied] = order[tied][rearranged]
        words, numbers = words[rearranged], group[tied]
        begins = np.ones(len(tied), bool)
        begins[1:] = (words[1:] != words[:-1]) | (numbers[1:] != numbers[:-1])
        group[tied] = tied[np.flatnonzero(begins)][np.cumsum(begins) - 1]
        ends = np.append(begins[1:], True)
        tied = tied[~(begins & ends)]
        if not len(tied):
            break
    return order
