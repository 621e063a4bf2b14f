"""Perplexity and bits per byte from negative log-likelihoods, with confidence intervals (NumPy only)."""

import math
from dataclasses import dataclass

import numpy as np

from knnstore.arrays import Float64, Int64

_RESAMPLES = 2000
_LEVEL = 0.95
_SEED = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Σ −ln p (nats), tokens and bytes of each document: arrays of equal length."""

    nats: Float64
    tokens: Int64
    bytes: Int64

    @property
    def perplexity(self) -> float:
        """Return exp of the mean −ln p per token."""
        return math.exp(self.nats.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Return the bits per byte of UTF-8, which can be compared across tokenizers."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())

    def perplexity_interval(self) -> Interval | None:
        """Return the 95 % interval of the perplexity over documents; None if there are fewer than two."""
        weights = _resamples(len(self.tokens))
        if weights is None:
            return None
        return _interval(np.exp((weights @ self.nats) / (weights @ self.tokens)))


def gain_percent(base: Likelihood, other: Likelihood) -> float:
    """Return the reduction in perplexity from base to other, in percent."""
    return 100 * (1 - other.perplexity / base.perplexity)


def gain_interval(base: Likelihood, other: Likelihood) -> Interval | None:
    """Return the 95 % interval of the gain in percent over documents (paired); None if there are fewer than two."""
    weights = _resamples(len(base.tokens))
    if weights is None:
        return None
    return _interval(100 * (1 - np.exp((weights @ (other.nats - base.nats)) / (weights @ base.tokens))))


def by_document(document: Int64, log_p: Float64, documents: int) -> Float64:
    """Return Σ −ln p of each document: float64 (documents,)."""
    sums: Float64 = np.bincount(document, weights=-log_p, minlength=documents).astype(np.float64)
    return sums


def _resamples(documents: int) -> Float64 | None:
    """Return how often each document is drawn in each bootstrap resample: (resamples, documents)."""
    if documents < 2:
        return None
    rng = np.random.default_rng(_SEED)
    drawn: Float64 = rng.multinomial(documents, np.full(documents, 1 / documents), size=_RESAMPLES).astype(np.float64)
    return drawn


def _interval(values: Float64) -> Interval:
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(low), float(high))
