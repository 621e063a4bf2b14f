"""The grid of tuning: numbers of neighbours, temperatures, and temperatures of the cache."""

from dataclasses import dataclass

from knnstore.mixing.knn import typical_spread
from knnstore.neighbours import Neighbours
from knnstore.scoring.options import DEFAULT_K, ScoreOptions

_KS = (8, 32, 128, 512, 1024)
# Temperatures as multiples of the queries' median spread of distances, d_k − d_1, half an octave apart. The best
# temperature grows with the width and scale of the keys, so the grid has to depend on the data.
_SPREADS = tuple(2.0 ** (exponent / 2) for exponent in range(-10, 5))
_CACHE_SPREADS = tuple(2.0**exponent for exponent in range(-5, 2))


@dataclass(frozen=True, slots=True)
class Grid:
    """The settings to try; λ is fitted for each (k, temperature)."""

    ks: tuple[int, ...]
    temperatures: tuple[float, ...]


def make_grid(options: ScoreOptions, rows: int, neighbours: Neighbours | None) -> Grid:
    """Return the grid for what ``options`` leave open; ``neighbours`` of some queries set the temperatures' scale."""
    largest = min(DEFAULT_K, rows)
    ks = (min(options.k, rows),) if options.k is not None else tuple(sorted({min(k, largest) for k in _KS}))
    if options.temperature is not None:
        return Grid(ks, (options.temperature,))
    assert neighbours is not None
    return Grid(ks, _multiples(typical_spread(neighbours.distances), _SPREADS))


def make_cache_temperatures(options: ScoreOptions, neighbours: Neighbours) -> tuple[float, ...]:
    """Return the temperatures to try for the cache, whose keys have the scale of the store's."""
    if options.cache_temperature is not None:
        return (options.cache_temperature,)
    return _multiples(typical_spread(neighbours.distances), _CACHE_SPREADS)


def _multiples(spread: float, of: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{spread * multiple:.3g}") for multiple in of)
