"""Mix the LM's probabilities with those of other sources, and find the best constant weights (NumPy only)."""

from typing import Any

import numpy as np

from knnstore.arrays import Float64

_HALVINGS = 24
_EM_STEPS = 300
_EM_TOLERANCE = 1e-7
# A store never takes all: a token that it has never seen would have no probability.
_LARGEST_LAMBDA = 0.999


def mix_sources(log_lm: Any, sources: Any, weights: Any) -> Float64:
    """Return ln p of each token: p = (1 − Σ w_s) p_LM + Σ w_s p_s, mixed in log space: float64 (tokens,).

    Args:
        log_lm: ln p_LM, float (tokens,). sources: p_s, float (tokens, sources), 0 allowed.
        weights: w_s, float (sources,) or (tokens, sources), at least 0 and together at most 1.
    """
    weights = np.broadcast_to(np.asarray(weights, np.float64), np.shape(sources))  # (tokens, sources)
    with np.errstate(divide="ignore"):  # ln 0 = −inf is no part of a sum
        log_parts = np.log(np.asarray(sources, np.float64)) + np.log(weights)  # (tokens, sources)
        log_rest = np.asarray(log_lm, np.float64) + np.log1p(-np.minimum(weights.sum(axis=1), 1))  # (tokens,)
    log_sources: Float64 = np.logaddexp.reduce(log_parts, axis=1, initial=-np.inf)  # (tokens,)
    return np.asarray(np.logaddexp(log_rest, log_sources))


def mix(log_lm: Any, knn: Any, lambda_: float) -> Float64:
    """Return ln p of each token: p = λ p_kNN + (1 − λ) p_LM (Khandelwal et al. 2020, eq. 3): float64 (tokens,).

    Args:
        log_lm: ln p_LM, float (tokens,). knn: p_kNN, float (tokens,), 0 allowed.
        lambda_: weight of the store, in [0, 1].
    """
    return mix_sources(log_lm, np.asarray(knn)[:, None], [lambda_])


def best_lambda(log_lm: Any, knn: Any) -> tuple[Float64, Float64]:
    """Return the λ that makes the tokens most probable, and the mean of −ln p there, for each column of ``knn``.

    Σ ln(λ p_kNN + (1 − λ) p_LM) is concave in λ, so its derivative's only root is found by halving [0, 0.999].

    Args:
        log_lm: float (tokens,). knn: float (tokens, settings).

    Returns:
        λ and mean −ln p, each float64 (settings,).
    """
    lm = np.exp(np.asarray(log_lm, np.float64))[:, None]  # (tokens, 1)
    lm = np.maximum(lm, np.finfo(np.float64).tiny)
    low, high = np.zeros(knn.shape[1]), np.full(knn.shape[1], _LARGEST_LAMBDA)
    gain = np.asarray(knn, np.float64) - lm  # (tokens, settings)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rising = (gain / (lm + middle * gain)).sum(axis=0) > 0
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    best = np.round((low + high) / 2, 4)
    return best, -np.log(lm + best * gain).mean(axis=0)


def best_weights(log_lm: Any, sources: Any) -> tuple[Float64, float]:
    """Return the constant weights that make the tokens most probable, float64 (sources,), and the mean −ln p there.

    Expectation maximisation; the likelihood is concave in the weights, so what it converges to is the best.
    """
    lm = np.maximum(np.exp(np.asarray(log_lm, np.float64)), np.finfo(np.float64).tiny)
    parts = np.concatenate([lm[:, None], np.asarray(sources, np.float64)], axis=1)  # (tokens, 1 + sources)
    weights, loss = np.full(parts.shape[1], 1 / parts.shape[1]), np.inf
    for _ in range(_EM_STEPS):
        total = parts @ weights
        before, loss = loss, float(-np.log(total).mean())
        if before - loss < _EM_TOLERANCE:
            break
        weights = weights * (parts / total[:, None]).mean(axis=0)
    kept = np.round(weights[1:], 4)
    return kept, float(-np.log(parts @ np.concatenate([[1 - kept.sum()], kept])).mean())
