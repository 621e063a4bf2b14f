"""Contexts, read backwards from a position and packed into 64-bit words, for sorting and searching.

A stream consists of the tokens of all documents, with a separator before each document. The context of stream
position p is stream[p − 1], stream[p − 2], … Contexts that end in the same n tokens therefore start with the same n
entries, so that sorted contexts have all occurrences of any n tokens next to each other, for every n.

Several tokens are packed into one word, the first in the highest bits, so that comparing words as integers compares
tokens in order. With 16 bits per token::

    word 0:  | stream[p−1] | stream[p−2] | stream[p−3] | stream[p−4] |
    word 1:  | stream[p−5] | stream[p−6] | …
"""

from typing import Any, Protocol

import numpy as np

from knnstore.arrays import Int64, Uint64

DEPTH = 32  # maximum number of tokens of a context that are compared


class Stream(Protocol):
    """Tokens by position: a NumPy array, or an array mapped from disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (positions,)."""

    def take(self, rows: Any) -> Any:
        """Return the tokens at some positions."""


class Packing:
    """The number of tokens per 64-bit word, and two ids beyond the vocabulary: ``separator`` and ``nothing``."""

    def __init__(self, vocabulary: int) -> None:
        self.bits = 16 if vocabulary + 2 <= 2**16 else 32
        self.tokens = 64 // self.bits
        self.words = DEPTH // self.tokens
        self.separator = vocabulary
        self.nothing = vocabulary + 1
        self.dtype = np.dtype(np.uint16 if self.bits == 16 else np.uint32)

    def pack(self, tokens: Any) -> Uint64:
        """Pack tokens (n, tokens) into words, the first token in the highest bits: uint64 (n,)."""
        word = np.zeros(len(tokens), np.uint64)
        for column in range(self.tokens):
            word = word << np.uint64(self.bits) | tokens[:, column].astype(np.uint64)
        return word

    def word_at(self, stream: Stream, positions: Int64, number: int) -> Uint64:
        """Return word ``number`` of the contexts of stream positions: uint64 (n,)."""
        first = positions - 1 - number * self.tokens
        back = first[:, None] - np.arange(self.tokens)
        tokens = np.where(back >= 0, stream.take(np.maximum(back, 0).reshape(-1)).reshape(back.shape), self.separator)
        return self.pack(tokens)

    def mask(self, lengths: Int64, number: int) -> Uint64:
        """Return a mask of the bits of word ``number`` that belong to the first ``lengths`` tokens: uint64 (n,)."""
        kept = np.clip(lengths - number * self.tokens, 0, self.tokens)
        table = np.array(
            [((1 << 64) - 1) ^ ((1 << (self.bits * (self.tokens - count))) - 1) for count in range(self.tokens + 1)],
            np.uint64,
        )
        return table[kept]

    def query_words(self, contexts: Any) -> Uint64:
        """Pack contexts (n, DEPTH), last token first, ``nothing`` before a document: uint64 (words, n)."""
        return np.stack(
            [self.pack(contexts[:, number * self.tokens : (number + 1) * self.tokens]) for number in range(self.words)]
        )


def contexts_of(ids: Any, first: Int64, positions: Int64, nothing: int) -> Any:
    """Return the last DEPTH tokens before each position of ``ids``, last first: int64 (n, DEPTH).

    ``first``: start of each position's document in ``ids``; earlier entries are ``nothing``.
    """
    back = positions[:, None] - 1 - np.arange(DEPTH)
    return np.where(back >= first[:, None], ids[np.maximum(back, 0)].astype(np.int64), nothing)


def sorted_positions(stream: Stream, positions: Int64, packing: Packing) -> Int64:
    """Sort stream positions by their contexts; positions with equal contexts (to DEPTH tokens) stay ascending.

    Sorts by one word at a time, as in a radix sort from the highest digit: after each word, only positions that are
    still tied are sorted again, within their ties. Most contexts differ in the first words.
    """
    order = np.sort(positions)
    group = np.zeros(len(order), np.int64)  # positions that are still tied have equal numbers, ascending in order
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
