"""A gate: from features of a prediction to a weight for each source of the mixture (NumPy only).

A perceptron with one hidden layer, softmax(tanh(z W₁ + b₁) W₂ + b₂) of standardised features z. It is small: its
weights are a few kilobytes of JSON, and it takes microseconds per token. A weight for each token from the retrieval's
own quality is the idea of Drozdov et al. 2022.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.arrays import Float32

_FARTHEST = 8.0  # standard deviations; a text unlike the training texts doesn't saturate the gate


@dataclass(frozen=True, slots=True)
class MemorySource:
    """A distribution over the next token that is mixed with the LM's.

    ``kind``: ``store`` (the ``k`` nearest keys at ``temperature``), ``cache`` (the document's own past at
    ``temperature``), ``longest`` or ``frequent`` (what followed that suffix of the context in the store).
    """

    kind: str
    k: int = 0
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("store", "cache", "longest", "frequent"):
            raise ValueError(f"unknown source {self.kind!r}")
        if self.kind == "store" and self.k < 1:
            raise ValueError(f"k is {self.k}")
        if self.kind in ("store", "cache") and not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}")


MATCH_SOURCES = (MemorySource("longest"), MemorySource("frequent"))


@dataclass(frozen=True, slots=True)
class Gate:
    """A trained gate. Of F features, H hidden units and S sources (the LM is the first weight, S + 1 in all):

    ``features``: their names; ``centre`` and ``scale`` (F); ``hidden`` (F × H) and ``hidden_bias`` (H); ``output``
    (H × (S + 1)) and ``output_bias`` (S + 1).
    """

    features: tuple[str, ...]
    sources: tuple[MemorySource, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    hidden: tuple[tuple[float, ...], ...]
    hidden_bias: tuple[float, ...]
    output: tuple[tuple[float, ...], ...]
    output_bias: tuple[float, ...]

    def __post_init__(self) -> None:
        width, units, outputs = len(self.features), len(self.hidden_bias), len(self.sources) + 1
        shapes = [np.shape(self.centre), np.shape(self.scale), np.shape(self.hidden), np.shape(self.output)]
        if shapes != [(width,), (width,), (width, units), (units, outputs)] or len(self.output_bias) != outputs:
            raise ValueError(f"the gate's weights don't fit {width} features, {units} units and {outputs} sources")
        numbers = (self.centre, self.scale, self.hidden, self.hidden_bias, self.output, self.output_bias)
        if not all(np.isfinite(values).all() for values in numbers) or min(self.scale, default=1) <= 0:
            raise ValueError("the gate has weights that aren't finite, or a scale that isn't positive")

    def weights(self, features: Float32) -> Float32:
        """Return the weights of the LM and of each source, float32 (n, S + 1); rows sum to 1. ``features``: (n, F)."""
        z = standardised(features, self.centre, self.scale)  # (n, F)
        hidden = np.tanh(z @ _array(self.hidden) + _array(self.hidden_bias))  # (n, H)
        logits = hidden @ _array(self.output) + _array(self.output_bias)  # (n, S + 1)
        logits -= logits.max(axis=1, keepdims=True)
        weights = np.exp(logits)
        weights /= weights.sum(axis=1, keepdims=True)
        return np.asarray(weights, np.float32)


def standardised(features: Any, centre: Any, scale: Any) -> Float32:
    """Return features less their centre in units of their scale, clipped to ±8 of them: float32 (n, F)."""
    return np.asarray(np.clip((features - _array(centre)) / _array(scale), -_FARTHEST, _FARTHEST))


def _array(values: Any) -> Float32:
    return np.asarray(values, np.float32)
