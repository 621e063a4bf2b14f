"""What the encoder of an encoder-decoder model reads: the source texts of a batch of windows, padded and masked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from knnstore.windows import Padding, Windows, ladder

Int64 = np.ndarray[Any, np.dtype[np.int64]]

SourceReader = Callable[[int], "np.ndarray[Any, Any]"]
"""A document to the token ids of its source."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceBatch:
    """Source texts: ``ids`` int64 and ``mask`` int64 (batch, longest), 1 where there is text. Padded on the right."""

    ids: Int64
    mask: Int64

    @classmethod
    def of(cls, texts: "list[np.ndarray[Any, Any]]", pad: int, width: int | None = None) -> "SourceBatch":
        """Source texts, padded with token ``pad`` to ``width``, None for the longest."""
        longest = width or max(1, *map(len, texts))
        ids, mask = np.full((len(texts), longest), pad, np.int64), np.zeros((len(texts), longest), np.int64)
        for line, text in enumerate(texts):
            ids[line, : len(text)], mask[line, : len(text)] = text, 1
        return cls(ids, mask)

    def arguments(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Those of a forward pass that the encoder takes."""
        return {
            "input_ids": torch.from_numpy(self.ids).to(device),
            "attention_mask": torch.from_numpy(self.mask).to(device),
        }


def batches_with_sources(
    windows: Windows, batch_tokens: int, read: SourceReader, padding: Padding, longest: int
) -> Iterator[tuple[Windows, list[Any], int]]:
    """Batches of windows, their sources, and the length that these are padded to.

    Padded they hold at most ``batch_tokens`` tokens on either side. ``longest``: most tokens that the encoder reads.
    """
    for together in windows.batches(batch_tokens, padding):
        texts = [read(int(document)) for document in together.document]
        widths = np.array([max(1, len(text)) for text in texts])
        order = np.arange(len(texts))
        if padding != "longest":
            widths = ladder(widths, longest) if padding == "ladder" else widths
            order = np.argsort(-widths, kind="stable")
        begin = 0
        while begin < len(order):
            end, width = begin + 1, int(widths[order[begin]])
            while end < len(order) and _joins(padding, width, int(widths[order[end]]), end + 1 - begin, batch_tokens):
                width = max(width, int(widths[order[end]]))
                end += 1
            places = order[begin:end]
            yield together.select(places), [texts[place] for place in places], width
            begin = end


def _joins(padding: Padding, width: int, other: int, lines: int, batch_tokens: int) -> bool:
    """Whether a source of the ``other`` width joins those of ``width``, so that there are so many lines."""
    return (padding == "longest" or other == width) and max(width, other) * lines <= batch_tokens
