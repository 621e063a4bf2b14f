"""The constants of a mixture."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """k, λ and temperature of the mixture; of a cache its pairs, weight μ and temperature (0 pairs: none)."""

    k: int
    lambda_: float
    temperature: float
    cache: int = 0
    cache_weight: float = 0.0
    cache_temperature: float = 0.0
