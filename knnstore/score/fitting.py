"""Fit a mixture to evidence: the best constants, and a gate over several views of the sources."""

from dataclasses import replace
from typing import Any

import numpy as np

from knnstore.evidence import LM_FEATURES
from knnstore.gating import Source
from knnstore.score.mixture import FEATURES, FEATURES_WITH_MATCHES, Mixture
from knnstore.score.options import ScoreOptions
from knnstore.score.passes import Block
from knnstore.score.result import Setting
from knnstore.score.training import FEWEST_TOKENS, Lesson, train_gate
from knnstore.score.tuning import Evidence, fit, make_grid, typical_spread

# A gate chooses between temperatures as well: the best constant one, and those this many half-octaves away.
_STEPS = (-4, 0, 4)
_UNSEARCHED_EVERY = 6


def gather(options: ScoreOptions, rows: int, block: Block, *, gate: bool) -> Evidence:
    """An empty evidence, with the grid that a first block's neighbours call for."""
    return Evidence(
        make_grid(options, rows, block.neighbours),
        typical_spread(block.neighbours.distances),
        options.cache,
        block.cache_temperatures,
        wants_features=gate,
    )


def fit_mixture(evidence: Evidence, options: ScoreOptions, rows: Any = slice(None)) -> Mixture:
    """The best constants on (some rows of) the evidence, and a gate where features were gathered and are enough."""
    mixture = Mixture(fit(evidence, options, rows), None, evidence.spread)
    if not evidence.wants_features:
        return mixture
    lesson, sources = gate_lesson(evidence, mixture.setting, rows)
    if len(lesson.log_lm) < FEWEST_TOKENS:
        return mixture
    names = FEATURES_WITH_MATCHES if evidence.has("matches") else FEATURES
    return replace(mixture, gate=train_gate(with_unsearched(lesson), names, sources))


def with_unsearched(lesson: Lesson) -> Lesson:
    """The lesson, and some of its tokens once more as if nothing had been searched for them.

    So the gate knows what to make of a token whose search was skipped, or found nothing.
    """
    again = lesson.select(np.arange(0, len(lesson.log_lm), _UNSEARCHED_EVERY))
    features, sources = again.features.copy(), again.sources.copy()
    features[:, len(LM_FEATURES) : len(FEATURES)] = 0
    sources[:, : lesson.store_sources] = np.exp(again.log_lm)[:, None]
    return Lesson(
        np.concatenate([lesson.features, features]),
        np.concatenate([lesson.log_lm, again.log_lm]),
        np.concatenate([lesson.sources, sources]),
        np.concatenate([lesson.document, again.document]),
        lesson.store_sources,
    )


def gate_lesson(evidence: Evidence, setting: Setting, rows: Any = slice(None)) -> tuple[Lesson, tuple[Source, ...]]:
    """What a gate learns from, and the sources that it weighs, around the best constants."""
    grid = evidence.grid
    k, centre = grid.ks.index(setting.k), grid.temperatures.index(setting.temperature)
    near = sorted({min(max(centre + step, 0), len(grid.temperatures) - 1) for step in _STEPS})
    columns = [evidence.column("knn")[rows][:, k, index] for index in near]
    sources = [Source("store", setting.k, grid.temperatures[index]) for index in near]
    if setting.cache:
        columns.append(evidence.column("cache")[rows][:, evidence.cache_temperatures.index(setting.cache_temperature)])
        sources.append(Source("cache", 0, setting.cache_temperature))
    if evidence.has("matches"):
        columns += list(evidence.column("matches")[rows].T)
        sources += [Source("longest"), Source("frequent")]
    lesson = Lesson(
        evidence.column("features")[rows],
        evidence.column("log_lm")[rows],
        np.stack(columns, axis=1),
        evidence.column("document")[rows],
        len(near),
    )
    return lesson, tuple(sources)
