"""Input of the encoder of an encoder-decoder model: the source texts of a batch of windows, padded and masked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from knnstore.arrays import Int64
from knnstore.windows import Padding, Windows, ladder

SourceReader = Callable[[int], "np.ndarray[Any, Any]"]
"""Maps a document to the token ids of its source."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceBatch:
    """Source texts, padded on the right: ``ids`` and ``mask``, int64 (batch, longest); the mask is 1 for text."""

    ids: Int64
    mask: Int64

    @classmethod
    def of(cls, texts: "list[np.ndarray[Any, Any]]", pad: int, width: int | None = None) -> "SourceBatch":
        """Pad source texts with token ``pad`` to ``width``; None for the longest text."""
        longest = width or max(1, *map(len, texts))
        ids, mask = np.full((len(texts), longest), pad, np.int64), np.zeros((len(texts), longest), np.int64)
        for line, text in enumerate(texts):
            ids[line, : len(text)], mask[line, : len(text)] = text, 1
        return cls(ids, mask)

    def arguments(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the arguments of a forward pass for the encoder."""
        return {
            "input_ids": torch.from_numpy(self.ids).to(device),
            "attention_mask": torch.from_numpy(self.mask).to(device),
        }


def batches_with_sources(
    windows: Windows, batch_tokens: int, read: SourceReader, padding: Padding, longest: int
) -> Iterator[tuple[Windows, list[Any], int]]:
    """Yield batches of windows, their sources, and the length to which the sources are padded.

    A padded batch holds at most ``batch_tokens`` tokens on either side. ``longest``: maximum tokens of the encoder.
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
    """Return whether a source of width ``other`` may join those of ``width`` as line number ``lines``."""
    return (padding == "longest" or other == width) and max(width, other) * lines <= batch_tokens
