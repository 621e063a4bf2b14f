"""Cut documents into windows so that each token is predicted exactly once, with enough context (NumPy only)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from knnstore.arrays import Int64
from knnstore.errors import UsageError

Padding = Literal["longest", "ladder", "exact", "alone"]
"""Which windows share a batch, and the length to which they are padded.

``ladder``: windows on one step of a ladder of lengths, padded to that step, so that a window's shape depends only on
the window. ``exact``: windows of equal length, unpadded, for LMs whose results depend on the longest text of a batch.
``alone``: one window per batch, for LMs whose results depend on the other texts. ``longest``: windows of similar
lengths, padded to the longest of them, as in stores made before the ladder existed.
"""
PADDINGS: tuple[Padding, ...] = ("longest", "ladder", "exact", "alone")

ROWS = 16
"""Positions per block of rows that CPU kernels compute identically anywhere in a matrix."""


def require_window(context: int, stride: int, *, longest: int, model: str) -> None:
    """Raise UsageError unless the LM takes windows of ``context`` positions, and ``stride`` of them can be scored."""
    if not 0 < context <= longest:
        raise UsageError.about("context", context, limit=longest, remedy=f"{model} takes 1 to {longest} positions")
    if not 0 < stride <= context:
        raise UsageError.about("stride", stride, f"is not between 1 and the context {context}", limit=context)


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Windows over documents, int64 arrays of equal length.

    A document's stream is BOS followed by its tokens. Window w feeds stream positions ``[start, start + length)``
    to the LM, and the hidden states of its last ``scored`` positions are used. The state at stream position p is the
    key of the document's token p (0-based), which follows it. ``row``: row of the first scored token; the others
    follow. ``context``: maximum number of positions per window.
    """

    document: Int64
    start: Int64
    length: Int64
    scored: Int64
    row: Int64
    context: int

    def __len__(self) -> int:
        return len(self.document)

    def select(self, index: Any) -> "Windows":
        """Return the windows at ``index``: a slice, or an integer or bool array."""
        document, start, length = self.document[index], self.start[index], self.length[index]
        return Windows(document, start, length, self.scored[index], self.row[index], self.context)

    def widths(self, padding: Padding) -> Int64:
        """Return the padded length of each window, int64 (windows,); for ``longest``, if all are in one batch."""
        if padding == "longest":
            return np.full(len(self), self.length.max())
        return ladder(self.length, self.context) if padding == "ladder" else self.length

    def batches(self, batch_tokens: int, padding: Padding = "ladder", lines: int = 1) -> Iterator["Windows"]:
        """Yield batches of windows, longest first, with at most ``batch_tokens`` tokens after padding.

        They depend only on the windows and the arguments, so that a task run twice makes the same batches. A window
        longer than ``batch_tokens`` is its own batch. The size of a full batch with more than ``lines`` windows is a
        multiple of ``lines``.
        """
        ordered = self.select(np.lexsort((self.scored, self.length))[::-1])
        widths = ordered.length if padding == "longest" else ordered.widths(padding)
        begin = 0
        while begin < len(ordered):
            width = int(widths[begin])
            size = max(1, batch_tokens // width)
            size -= size % lines if size > lines else 0
            if padding == "alone" or (padding == "exact" and width < ROWS):
                size = 1
            elif padding != "longest":
                size = min(size, int(np.searchsorted(-widths, -width, side="right")) - begin)  # windows of one width
            yield ordered.select(slice(begin, begin + size))
            begin += size


def ladder(length: Int64, most: int) -> Int64:
    """Return the steps of the ladder to which lengths are padded: int64, like ``length``, and at most ``most``.

    A step is the next multiple of 16 or, if larger, of an eighth of the next power of two. A text is therefore padded
    by at most 15 positions or a quarter of its length.
    """
    octave = 1 << np.maximum(np.ceil(np.log2(np.maximum(length, 1))).astype(np.int64), 0)
    step = np.maximum(ROWS, octave // 8)
    steps: Int64 = np.minimum(-(-length // step) * step, np.maximum(length, most))
    return steps


def cut_windows(
    first_row: Int64, tokens: Int64, *, context: int, stride: int, rows: tuple[int, int] | None = None
) -> Windows:
    """Return the windows of documents in order; with ``rows``, only those that score a row in ``[begin, end)``.

    A window holds at most ``context`` stream positions and scores the last ``stride`` of them, then slides by
    ``stride``: every token except the first few of a document sees at least ``context - stride`` positions, as in
    Khandelwal et al. 2020. Windows never cross documents.

    Args:
        first_row: int64 (documents,), ascending: the row of each document's first token.
        tokens: int64 (documents,): number of tokens of each document; 0 for no windows.
        context: W. stride: S, at most W.
        rows: half-open range of rows.
    """
    if not 0 < stride <= context:
        raise ValueError(f"stride {stride} is not between 1 and the context {context}")
    begin_row, end_row = rows if rows is not None else (0, int(np.iinfo(np.int64).max))
    wanted = begin_row < end_row  # an empty range within a document overlaps none of its windows
    overlapping = np.flatnonzero((first_row < end_row) & (first_row + tokens > begin_row) & wanted)
    first, count = first_row[overlapping], tokens[overlapping]
    low = np.maximum(begin_row - first, 0) // stride  # first requested window of each document
    high = -(-np.minimum(end_row - first, count) // stride)  # one past the last
    number = high - low
    which = np.repeat(np.arange(len(overlapping)), number)
    within = np.arange(int(number.sum())) - np.repeat(np.cumsum(number) - number, number)
    position = (low[which] + within) * stride  # i: the first scored stream position
    start = np.maximum(position + stride - context, 0)
    end = np.minimum(position + stride, count[which])
    return Windows(overlapping[which], start, end - start, end - position, first[which] + position, context)
