"""The tuning table: each token's probability under every setting of the grid, and the features of a gate.

With these columns any mixture of the grid can be evaluated by a few array operations. So a pass of the LM and one
search, with the largest k, suffice to fit the constants, to train a gate and to cross-validate both.
"""

from dataclasses import dataclass

import numpy as np

from knnstore.mixing.gate import MATCH_SOURCES, MemorySource
from knnstore.mixing.knn import typical_spread
from knnstore.scoring.columns import Columns
from knnstore.scoring.grid import Grid, make_grid
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.passes import Block


@dataclass(slots=True, kw_only=True)
class TuningTable(Columns):
    """The columns that mixtures are fitted to.

    ``document``: int64 (n,). ``log_lm``: float64 (n,). ``knn``: p_kNN, float32 (n, ks, temperatures). ``cache``:
    p_cache, float32 (n, cache temperatures). If a gate is to be trained also ``features``, float32 (n, F), and
    ``matches``, p by the longest and the longest frequent match, float32 (n, 2).
    """

    grid: Grid
    spread: float
    cache_size: int
    cache_temperatures: tuple[float, ...]
    wants_features: bool

    @classmethod
    def for_blocks_like(
        cls, first: Block, options: ScoreOptions, rows: int, *, cache_size: int, gate: bool
    ) -> "TuningTable":
        """Return an empty table whose grid suits the neighbours of the first block; ``rows``: of the stores."""
        neighbours, cache = first.evidence.neighbours, first.evidence.cache
        return cls(
            grid=make_grid(options, rows, neighbours),
            spread=typical_spread(neighbours.distances),
            cache_size=cache_size,
            cache_temperatures=cache.temperatures if cache else (),
            wants_features=gate,
        )

    def add(self, block: Block) -> None:
        """Append the tokens of a block."""
        evidence, targets, log_lm = block.evidence, block.tokens.targets, block.tokens.log_p
        knn = evidence.store_p(targets, log_lm, self.grid.ks, self.grid.temperatures)
        self.append(document=block.document, log_lm=log_lm, knn=knn)
        sources = {"cache": [MemorySource("cache", 0, temperature) for temperature in self.cache_temperatures]}
        if self.wants_features:
            self.append(features=evidence.features(self.spread, evidence.neighbours.values.shape[1]))
            sources["matches"] = [*MATCH_SOURCES] if evidence.matches else []
        for name, kinds in sources.items():
            if kinds:
                p = [evidence.probability(source, targets, log_lm) for source in kinds]
                self.append(**{name: np.stack(p, axis=1)})
