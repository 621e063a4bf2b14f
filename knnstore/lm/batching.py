"""Determine which texts may share a batch without changing their states."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from knnstore.arrays import Float32, Int64
from knnstore.windows import Padding

# Squared error as a share of the variance: far above rounding, far below the effect of other rotary frequencies.
_ROUNDING = {"float32": 1e-8, "bfloat16": 1e-3, "float16": 1e-3}
_SHORT, _BEGINNING = 64, 2  # tokens of the compared text and of its beginning
_MOST_REMEMBERED = 2**16  # numbers in the buffers of a module: frequencies, not masks


class Memory:
    """The state that an LM keeps between passes, such as rotary frequencies that depend on the longest text so far.

    Covers modules with buffers and without weights, and records their buffers and numbers.
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
        """Return whether anything has changed since it was recorded."""
        return any(
            _numbers(module) != numbers
            or any(not _same(module._buffers.get(name), buffer) for name, buffer in buffers.items())
            for module, buffers, numbers in zip(self._modules, self._buffers, self._numbers, strict=True)
        )

    def restore(self) -> None:
        """Restore what was recorded, on the current device of the model."""
        for module, buffers, numbers in zip(self._modules, self._buffers, self._numbers, strict=True):
            for name, buffer in buffers.items():
                current = module._buffers.get(name)
                module._buffers[name] = buffer.to(buffer.device if current is None else current.device, copy=True)
            module.__dict__.update(numbers)


def find_padding(
    keys: Callable[[Int64], Float32], model: nn.Module, *, context: int, vocabulary: int, filler: int, dtype: str
) -> Padding:
    """Return how windows of up to ``context`` positions may share a batch, tested with random tokens.

    A text and its beginning are run alone, beside another text of the same length, and padded to the maximum length.

    Args:
        keys: function from token ids, int64 (batch, length), to keys, float32 (batch, length, d).
        model: the LM that ``keys`` runs.
        vocabulary, filler: token ids are below ``vocabulary``; ``filler`` is the padding token.
        dtype: of the LM, which determines the differences that count as rounding.
    """
    length = max(1, min(_SHORT, context // 2))
    beginning = min(_BEGINNING, length)
    texts = np.random.default_rng(0).integers(0, vocabulary, (2, length))
    first = keys(texts[:1, :beginning])[0]
    memory = Memory(model)
    text = keys(texts[:1])[0]
    remembers = memory.changed()
    if not np.isfinite(text).all():
        return "ladder"  # comparisons are meaningless, and ingest refuses such keys anyway
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
    """Return whether keys (n, d) differ by more than rounding."""
    spread = np.square(other - other.mean(axis=0)).sum() or np.square(other).sum() or 1.0
    return not np.square(one - other).sum() / spread <= _ROUNDING.get(dtype, max(_ROUNDING.values()))


def _size(buffer: torch.Tensor | None) -> int:
    return 0 if buffer is None else buffer.numel()


def _same(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one.to(other.device), other)


def _numbers(module: nn.Module) -> dict[str, float]:
    """Return the numbers among a module's own attributes."""
    return {
        name: value.item() if isinstance(value, torch.Tensor) else value
        for name, value in vars(module).items()
        if (isinstance(value, int | float) and not isinstance(value, bool))
        or (isinstance(value, torch.Tensor) and value.numel() == 1)
    }
