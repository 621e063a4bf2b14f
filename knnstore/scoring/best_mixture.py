"""Find the best mixture on a table of tokens: the best constants, and a gate over several forms of the sources."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from knnstore.mixing.features import FEATURES, FEATURES_WITH_MATCHES
from knnstore.mixing.gate import MATCH_SOURCES, MemorySource
from knnstore.mixing.mixture import Mixture
from knnstore.scoring.best_setting import best_setting
from knnstore.scoring.gate_training import FEWEST_TOKENS, Lesson, train_gate, with_unsearched

if TYPE_CHECKING:
    from knnstore.mixing.setting import Setting
    from knnstore.scoring.best_setting import Rows
    from knnstore.scoring.options import ScoreOptions
    from knnstore.scoring.tuning_table import TuningTable

# A gate also chooses between temperatures: the best constant one, and those this many half-octaves away.
_STEPS = (-4, 0, 4)


def best_mixture(table: TuningTable, options: ScoreOptions, rows: Rows = slice(None)) -> Mixture:
    """Return the best constants on some rows of the table, and a gate if there are features and enough tokens."""
    mixture = Mixture(best_setting(table, options, rows), None, table.spread)
    if not table.wants_features:
        return mixture
    lesson, sources = gate_lesson(table, mixture.setting, rows)
    if len(lesson.log_lm) < FEWEST_TOKENS:
        return mixture
    names = FEATURES_WITH_MATCHES if "matches" in table else FEATURES
    return replace(mixture, gate=train_gate(with_unsearched(lesson), names, sources))


def gate_lesson(
    table: TuningTable, setting: Setting, rows: Rows = slice(None)
) -> tuple[Lesson, tuple[MemorySource, ...]]:
    """Return a gate's training data and the sources that it weighs, with temperatures near the best constant."""
    grid = table.grid
    k, centre = grid.ks.index(setting.k), grid.temperatures.index(setting.temperature)
    near = sorted({min(max(centre + step, 0), len(grid.temperatures) - 1) for step in _STEPS})
    columns = [table["knn"][rows][:, k, index] for index in near]
    sources = [MemorySource("store", setting.k, grid.temperatures[index]) for index in near]
    if setting.cache:
        columns.append(table["cache"][rows][:, table.cache_temperatures.index(setting.cache_temperature)])
        sources.append(MemorySource("cache", 0, setting.cache_temperature))
    if "matches" in table:
        columns += list(table["matches"][rows].T)
        sources += MATCH_SOURCES
    lesson = Lesson(
        table["features"][rows],
        table["log_lm"][rows],
        np.stack(columns, axis=1),
        table["document"][rows],
        len(near),
    )
    return lesson, tuple(sources)
