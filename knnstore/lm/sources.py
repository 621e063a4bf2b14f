"""What the encoder of an encoder-decoder model reads: the source texts of a batch of windows, padded and masked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from knnstore.windows import Windows

Int64 = np.ndarray[Any, np.dtype[np.int64]]

SourceReader = Callable[[int], "np.ndarray[Any, Any]"]
"""A document to the token ids of its source."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceBatch:
    """Source texts: ``ids`` int64 and ``mask`` int64 (batch, longest), 1 where there is text. Padded on the right."""

    ids: Int64
    mask: Int64

    @classmethod
    def of(cls, texts: "list[np.ndarray[Any, Any]]", pad: int) -> "SourceBatch":
        """Source texts, padded with token ``pad``."""
        longest = max(1, *map(len, texts))
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
    windows: Windows, batch_tokens: int, read: SourceReader
) -> Iterator[tuple[Windows, list[Any]]]:
    """Batches of windows, and their sources, that padded hold at most ``batch_tokens`` tokens on either side."""
    for batch in windows.batches(batch_tokens):
        texts = [read(int(document)) for document in batch.document]
        begin = 0
        while begin < len(batch):
            end, longest = begin + 1, len(texts[begin])
            while end < len(batch) and max(longest, len(texts[end])) * (end + 1 - begin) <= batch_tokens:
                longest = max(longest, len(texts[end]))
                end += 1
            yield batch.select(slice(begin, end)), texts[begin:end]
            begin = end
