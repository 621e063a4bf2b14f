"""Find the best constants of a mixture: k, λ and temperature, and weight and temperature of the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from knnstore.arrays import Int64
from knnstore.mixing.interpolation import best_lambda, best_weights, mix, mix_sources
from knnstore.mixing.setting import Setting

if TYPE_CHECKING:
    from knnstore.arrays import Float32, Float64
    from knnstore.scoring.grid import Grid
    from knnstore.scoring.options import ScoreOptions
    from knnstore.scoring.tuning_table import TuningTable

Rows = Int64 | slice
"""Selects tokens of a table."""


def choose(grid: Grid, log_lm: Float64, knn: Float32, lambda_: float | None) -> Setting:
    """Return the setting with the lowest perplexity. ``knn``: p_kNN, float32 (tokens, ks, temperatures)."""
    losses, lambdas = surface(log_lm, knn, lambda_)
    best = int(np.argmin(losses))
    k, temperature = divmod(best, len(grid.temperatures))
    return Setting(grid.ks[k], float(lambdas.reshape(-1)[best]), grid.temperatures[temperature])


def surface(log_lm: Float64, knn: Float32, lambda_: float | None = None) -> tuple[Float64, Float64]:
    """Return mean −ln p and the best (or given) λ for each k and temperature, each float64 (ks, temperatures)."""
    flat = knn.reshape(len(knn), -1)  # (tokens, ks × temperatures)
    if lambda_ is None:
        lambdas, losses = best_lambda(log_lm, flat)
    else:
        lambdas = np.full(flat.shape[1], lambda_)
        losses = np.array([-mix(log_lm, column, lambda_).mean() for column in flat.T])
    return losses.reshape(knn.shape[1:]), lambdas.reshape(knn.shape[1:])


def best_setting(table: TuningTable, options: ScoreOptions, rows: Rows = slice(None)) -> Setting:
    """Return the best setting on some rows of the table, for all that the options leave open.

    With a cache, k and T are chosen without it; then its temperature, together with λ and μ.
    """
    log_lm, knn = table["log_lm"][rows], table["knn"][rows]
    setting = choose(table.grid, log_lm, knn, options.lambda_)
    if not table.cache_temperatures:
        return setting
    chosen = knn[:, table.grid.ks.index(setting.k), table.grid.temperatures.index(setting.temperature)]
    cache = table["cache"][rows]
    tried = [_weights(log_lm, np.stack([chosen, column], axis=1), options) for column in cache.T]
    best = int(np.argmin([loss for _, loss in tried]))
    (lambda_, weight), _ = tried[best]
    temperature = table.cache_temperatures[best]
    return Setting(setting.k, lambda_, setting.temperature, table.cache_size, weight, temperature)


def _weights(log_lm: Float64, sources: Float32, options: ScoreOptions) -> tuple[tuple[float, float], float]:
    """Return λ and μ, as given or best, and mean −ln p. ``sources``: p by store and cache, float32 (tokens, 2)."""
    if options.lambda_ is None and options.cache_weight is None:
        weights, loss = best_weights(log_lm, sources)
        return (float(weights[0]), float(weights[1])), loss
    # one weight is given; the rest is divided between the LM and the other source, which is a single weight
    given, free = (0, 1) if options.lambda_ is not None else (1, 0)
    fixed = options.lambda_ if given == 0 else options.cache_weight
    assert fixed is not None
    weights = np.zeros(2)
    weights[given] = fixed
    if options.lambda_ is not None and options.cache_weight is not None:
        weights[free] = options.cache_weight
    else:
        shares = np.linspace(0, 0.98, 50) * (1 - fixed)
        losses = [-mix_sources(log_lm, sources, _pair(weights, free, share)).mean() for share in shares]
        weights[free] = shares[int(np.argmin(losses))]
    return (float(weights[0]), float(weights[1])), float(-mix_sources(log_lm, sources, weights).mean())


def _pair(weights: Float64, free: int, share: float) -> Float64:
    pair = weights.copy()
    pair[free] = share
    return pair
