"""Choose k, λ and temperature from one search."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.interpolation import best_lambda, mix
from knnstore.neighbours import Float32, Neighbours
from knnstore.score.options import DEFAULT_K, ScoreOptions
from knnstore.score.result import Setting

_KS = (8, 32, 128, 512, 1024)
# Temperatures as multiples of the queries' median spread of distances, d_k − d_1, half an octave apart. The best one
# grows with the keys' width and scale, so the grid has to come from the data.
_SPREADS = tuple(2.0 ** (exponent / 2) for exponent in range(-10, 5))


@dataclass(frozen=True, slots=True)
class Grid:
    """The settings that are tried; λ is found for each (k, temperature)."""

    ks: tuple[int, ...]
    temperatures: tuple[float, ...]


def make_grid(options: ScoreOptions, rows: int, neighbours: Neighbours | None) -> Grid:
    """The grid for what ``options`` leaves open; ``neighbours`` of some queries give the temperatures' scale."""
    largest = min(DEFAULT_K, rows)
    ks = (min(options.k, rows),) if options.k is not None else tuple(sorted({min(k, largest) for k in _KS}))
    if options.temperature is not None:
        return Grid(ks, (options.temperature,))
    assert neighbours is not None
    spread = typical_spread(neighbours.distances)
    return Grid(ks, tuple(float(f"{spread * multiple:.3g}") for multiple in _SPREADS))


def typical_spread(distances: Float32) -> float:
    """Median over queries of the k-th distance less the first; 1 where all are equal."""
    last = np.where(np.isfinite(distances), distances, -np.inf).max(axis=1)
    spreads = (last - distances[:, 0])[np.isfinite(last)]
    median = float(np.median(spreads)) if len(spreads) else 0.0
    return median if median > 0 else 1.0


def choose(grid: Grid, log_lm: Any, knn: Float32, lambda_: float | None) -> Setting:
    """The setting of the lowest perplexity. ``knn``: p_kNN, float32 (tokens, ks, temperatures)."""
    flat = knn.reshape(len(knn), -1)  # (tokens, ks × temperatures)
    if lambda_ is None:
        lambdas, losses = best_lambda(log_lm, flat)
    else:
        lambdas = np.full(flat.shape[1], lambda_)
        losses = np.array([-mix(log_lm, column, lambda_).mean() for column in flat.T])
    best = int(np.argmin(losses))
    k, temperature = divmod(best, len(grid.temperatures))
    return Setting(grid.ks[k], float(lambdas[best]), grid.temperatures[temperature])
