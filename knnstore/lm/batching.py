"""Find out which texts may share a batch, so that each has the states that it has alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from knnstore.windows import Padding

Float32 = np.ndarray[Any, np.dtype[np.float32]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]

# Squared error as a share of the variance. Rounding is far below it, another choice of frequencies far above.
_ROUNDING = {"float32": 1e-8, "bfloat16": 1e-3, "float16": 1e-3}
_SHORT, _BEGINNING = 64, 2  # tokens of the text that is compared, and of its beginning
_MOST_REMEMBERED = 2**16  # numbers in a buffer: frequencies, not masks


class Memory:
    """What an LM keeps from one pass to the next, such as rotary frequencies that follow the longest text so far.

    Looks at modules that have buffers and no weights, and records their buffers and numbers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            module
            for module in model.modules()
            if not module._parameters and 0 < sum(map(_size, module._buffers.values())) <= _MOST_REMEMBERED
        ]
        self._buffers = [
            {name: buffer.clone() for name, buffer in module._buffers.items() if buffer is not None}
            for module in self._modules
        ]
        self._numbers = [_numbers(module) for module in self._modules]

    def changed(self) -> bool:
        """Whether anything is different from what was recorded."""
        return any(
            _numbers(module) != numbers
            or any(not _same(module._buffers.get(name), buffer) for name, buffer in buffers.items())
            for module, buffers, numbers in zip(self._modules, self._buffers, self._numbers, strict=True)
        )

    def restore(self) -> None:
        """Put back what was recorded, on the device where the model is now."""
        for module, buffers, numbers in zip(self._modules, self._buffers, self._numbers, strict=True):
            for name, buffer in buffers.items():
                current = module._buffers.get(name)
                module._buffers[name] = buffer.to(buffer.device if current is None else current.device, copy=True)
            module.__dict__.update(numbers)


def find_padding(
    keys: Callable[[Int64], Float32], model: nn.Module, *, context: int, vocabulary: int, filler: int, dtype: str
) -> Padding:
    """How windows of up to ``context`` positions may share a batch, found by passes over random tokens.

    A text is run alone, beside another of its length, and padded to the longest length; and so is its beginning.

    Args:
        keys: token ids, int64 (batch, length), to their keys, float32 (batch, length, d).
        model: the LM that ``keys`` runs.
        vocabulary, filler: token ids are below ``vocabulary``; ``filler`` is the one that pads.
        dtype: the LM's, by which differences count as rounding.
    """
    length = max(1, min(_SHORT, context // 2))
    beginning = min(_BEGINNING, length)
    texts = np.random.default_rng(0).integers(0, vocabulary, (2, length))
    first = keys(texts[:1, :beginning])[0]
    memory = Memory(model)
    text = keys(texts[:1])[0]
    remembers = memory.changed()
    if not np.isfinite(text).all():
        return "ladder"  # no comparison says anything, and the ingest refuses such keys
    if _differ(keys(texts)[0], text, dtype):
        return "alone"
    padded = np.full((1, context), filler, np.int64)
    padded[0, :length] = texts[0]
    beside = keys(padded)[0]
    remembers |= memory.changed()
    if remembers or _differ(beside[:length], text, dtype) or _differ(beside[:beginning], first, dtype):
        return "exact"
    return "ladder"


def _differ(one: Float32, other: Float32, dtype: str) -> bool:
    """Whether keys (n, d) differ by more than rounding."""
    spread = np.square(other - other.mean(axis=0)).sum() or np.square(other).sum() or 1.0
    return not np.square(one - other).sum() / spread <= _ROUNDING.get(dtype, max(_ROUNDING.values()))


def _size(buffer: torch.Tensor | None) -> int:
    return 0 if buffer is None else buffer.numel()


def _same(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one.to(other.device), other)


def _numbers(module: nn.Module) -> dict[str, float]:
    """The numbers among a module's own attributes."""
    return {
        name: value.item() if isinstance(value, torch.Tensor) else value
        for name, value in vars(module).items()
        if (isinstance(value, int | float) and not isinstance(value, bool))
        or (isinstance(value, torch.Tensor) and value.numel() == 1)
    }
