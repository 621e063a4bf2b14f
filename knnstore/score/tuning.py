"""Choose k, λ and temperature, and the cache's weight and temperature, from one search."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from knnstore.interpolation import best_lambda, best_weights, mix, mix_sources
from knnstore.neighbours import Float32, Neighbours
from knnstore.score.mixture import cache_probabilities_of, features, match_probabilities, store_probabilities
from knnstore.score.options import DEFAULT_K, ScoreOptions
from knnstore.score.passes import Block
from knnstore.score.result import Setting

_KS = (8, 32, 128, 512, 1024)
# Temperatures as multiples of the queries' median spread of distances, d_k − d_1, half an octave apart. The best one
# grows with the keys' width and scale, so the grid has to come from the data.
_SPREADS = tuple(2.0 ** (exponent / 2) for exponent in range(-10, 5))
_CACHE_SPREADS = tuple(2.0**exponent for exponent in range(-5, 2))


@dataclass(frozen=True, slots=True)
class Grid:
    """The settings that are tried; λ is found for each (k, temperature)."""

    ks: tuple[int, ...]
    temperatures: tuple[float, ...]


@dataclass(slots=True)
class Evidence:
    """What tuning needs of every token, block by block.

    ``knn``: p_kNN, float32 (n, ks, temperatures); ``cache``: p_cache, float32 (n, cache temperatures); ``features``:
    float32 (n, features), and ``matches``, p by the longest and the longest frequent match, float32 (n, 2), if a gate
    is to be trained.
    """

    grid: Grid
    spread: float
    cache_size: int = 0
    cache_temperatures: tuple[float, ...] = ()
    wants_features: bool = False
    parts: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Take in a block."""
        columns = {
            "document": block.document,
            "log_lm": block.tokens.log_p,
            "knn": store_probabilities(block, self.grid.ks, self.grid.temperatures),
        }
        if self.cache_temperatures:
            columns["cache"] = cache_probabilities_of(block)
        if self.wants_features:
            columns["features"] = features(block, self.spread)
            if block.matches is not None:
                columns["matches"] = match_probabilities(block)
        for name, column in columns.items():
            self.parts.setdefault(name, []).append(column)

    def has(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self.parts

    def column(self, name: str) -> Any:
        """All of one column."""
        parts = self.parts[name]
        if len(parts) > 1:
            self.parts[name] = parts = [np.concatenate(parts)]
        return parts[0]

    def __len__(self) -> int:
        return sum(map(len, self.parts.get("log_lm", [])))


def make_grid(options: ScoreOptions, rows: int, neighbours: Neighbours | None) -> Grid:
    """The grid for what ``options`` leaves open; ``neighbours`` of some queries give the temperatures' scale."""
    largest = min(DEFAULT_K, rows)
    ks = (min(options.k, rows),) if options.k is not None else tuple(sorted({min(k, largest) for k in _KS}))
    if options.temperature is not None:
        return Grid(ks, (options.temperature,))
    assert neighbours is not None
    return Grid(ks, _multiples(typical_spread(neighbours.distances), _SPREADS))


def make_cache_temperatures(options: ScoreOptions, neighbours: Neighbours) -> tuple[float, ...]:
    """The cache's temperatures that are tried: its keys are of the store's scale."""
    if options.cache_temperature is not None:
        return (options.cache_temperature,)
    return _multiples(typical_spread(neighbours.distances), _CACHE_SPREADS)


def _multiples(spread: float, of: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{spread * multiple:.3g}") for multiple in of)


def typical_spread(distances: Float32) -> float:
    """Median over queries of the k-th distance less the first; 1 where all are equal."""
    last = np.where(np.isfinite(distances), distances, -np.inf).max(axis=1)
    spreads = (last - distances[:, 0])[np.isfinite(last)]
    median = float(np.median(spreads)) if len(spreads) else 0.0
    return median if median > 0 else 1.0


def choose(grid: Grid, log_lm: Any, knn: Float32, lambda_: float | None) -> Setting:
    """The setting of the lowest perplexity. ``knn``: p_kNN, float32 (tokens, ks, temperatures)."""
    losses, lambdas = surface(log_lm, knn, lambda_)
    best = int(np.argmin(losses))
    k, temperature = divmod(best, len(grid.temperatures))
    return Setting(grid.ks[k], float(lambdas.reshape(-1)[best]), grid.temperatures[temperature])


def surface(log_lm: Any, knn: Float32, lambda_: float | None = None) -> tuple[Any, Any]:
    """Mean −ln p, and the λ that it is had with, for each k and temperature: float64 (ks, temperatures) each."""
    flat = knn.reshape(len(knn), -1)  # (tokens, ks × temperatures)
    if lambda_ is None:
        lambdas, losses = best_lambda(log_lm, flat)
    else:
        lambdas = np.full(flat.shape[1], lambda_)
        losses = np.array([-mix(log_lm, column, lambda_).mean() for column in flat.T])
    return losses.reshape(knn.shape[1:]), lambdas.reshape(knn.shape[1:])


def fit(evidence: Evidence, options: ScoreOptions, rows: Any = slice(None)) -> Setting:
    """The best setting on (some rows of) the evidence, of what the options leave open.

    With a cache k and T are chosen without it, then its temperature, and λ and μ together.
    """
    log_lm, knn = evidence.column("log_lm")[rows], evidence.column("knn")[rows]
    setting = choose(evidence.grid, log_lm, knn, options.lambda_)
    if not evidence.cache_temperatures:
        return setting
    chosen = knn[:, evidence.grid.ks.index(setting.k), evidence.grid.temperatures.index(setting.temperature)]
    cache = evidence.column("cache")[rows]
    tried = [_weights(log_lm, np.stack([chosen, column], axis=1), options) for column in cache.T]
    best = int(np.argmin([loss for _, loss in tried]))
    (lambda_, weight), _ = tried[best]
    temperature = evidence.cache_temperatures[best]
    return Setting(setting.k, lambda_, setting.temperature, evidence.cache_size, weight, temperature)


def _weights(log_lm: Any, sources: Any, options: ScoreOptions) -> tuple[tuple[float, float], float]:
    """λ and μ, as given or the best, and the mean −ln p."""
    if options.lambda_ is None and options.cache_weight is None:
        weights, loss = best_weights(log_lm, sources)
        return (float(weights[0]), float(weights[1])), loss
    # one is given: what is left is divided between the LM and the other source, which is one weight again
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


def _pair(weights: Any, free: int, share: float) -> Any:
    pair = weights.copy()
    pair[free] = share
    return pair
