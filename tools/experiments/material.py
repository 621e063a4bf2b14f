"""Saved neighbours as a table of tokens, and mixtures fitted to some documents and measured on the others."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from knnstore.datastore.store import Datastore, store_path
from knnstore.mixing.features import FEATURES
from knnstore.mixing.gate import MemorySource
from knnstore.mixing.interpolation import best_weights, mix_sources
from knnstore.mixing.setting import Setting
from knnstore.progress import TerminalReporter
from knnstore.scoring.best_mixture import gate_lesson
from knnstore.scoring.best_setting import choose
from knnstore.scoring.crossvalidation import FOLDS, folds_of, gather_saved
from knnstore.scoring.gate_training import Lesson, gated_log_p, train_gate
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.saved import SavedNeighbours
from knnstore.scoring.tuning_table import TuningTable
from knnstore.suffix_array.build import open_suffixes

Fit = Callable[[Any, Any], Any]
"""Rows to fit to and rows to measure on, to ln p of the latter."""


def saved_arguments(command: ArgumentParser) -> None:
    """What an experiment with saved neighbours is told."""
    command.add_argument("--neighbours", required=True, help="what 'knnstore score --save-neighbours' wrote")
    command.add_argument("--store", required=True, help="the store that was searched")


class Material:
    """A file of neighbours with the store that they are from."""

    def __init__(self, saved: SavedNeighbours, store: Datastore, *, matches: bool = True) -> None:
        """``matches``: whether the store's exact-match memory is asked, if there is one."""
        self.saved, self.store, self._matches = saved, store, matches
        self._settings: dict[int, Setting] = {}

    @classmethod
    def of(cls, arguments: Namespace) -> "Material":
        """What ``saved_arguments`` name."""
        return cls(SavedNeighbours(arguments.neighbours), Datastore(store_path(arguments.store)))

    def _chosen(self, learned: Any) -> Setting:
        """The best k, λ and T of some rows; asked for again and again, found once."""
        key = hash(learned.tobytes())
        if key not in self._settings:
            table = self.table
            knn = table["knn"][learned]
            self._settings[key] = choose(table.grid, self.log_lm[learned], knn, None)
        return self._settings[key]

    def best_column(self, learned: Any) -> Any:
        """p_kNN of every token at the best k and T of some rows: float32 (n,)."""
        setting, table = self._chosen(learned), self.table
        k, t = table.grid.ks.index(setting.k), table.grid.temperatures.index(setting.temperature)
        return table["knn"][:, k, t]

    def _best_cache(self, learned: Any, others: Any) -> tuple[Any, float]:
        """p_cache, float32 (n, 1), at the temperature that goes best with other sources (n, s) on some rows."""
        columns = self.table["cache"]
        losses = [
            best_weights(self.log_lm[learned], np.concatenate([others, column[:, None]], axis=1)[learned])[1]
            for column in columns.T
        ]
        best = int(np.argmin(losses))
        return columns[:, best, None], self.table.cache_temperatures[best]

    @cached_property
    def table(self) -> TuningTable:
        """Everything at once: features, matches if the store has them, cache if it was saved."""
        options = ScoreOptions(adaptive=True)
        suffixes = open_suffixes(self.store) if self._matches else None
        return gather_saved(self.saved, options, suffixes, TerminalReporter())

    @cached_property
    def targets(self) -> Any:
        """The tokens: int64 (n,)."""
        return np.concatenate([block.tokens.targets for block in self.saved.blocks()])

    @property
    def log_lm(self) -> Any:
        """ln p_LM: float64 (n,)."""
        return self.table["log_lm"]

    @property
    def about(self) -> str:
        """What is measured on, in words."""
        facts = self.saved.facts
        return (
            f"{facts.store}: {facts.rows:,} keys, k {facts.k}; {len(facts.names)} documents, {len(self.saved):,} "
            "tokens, each measured by what was fitted to documents of the other four fifths"
        )

    def kept_out(self, fit: Fit) -> Any:
        """ln p of every token by what was fitted to the other parts: float64 (n,)."""
        fold, _ = folds_of(self.table["document"])
        result = np.empty(len(fold))
        for number in range(FOLDS):
            here = np.flatnonzero(fold == number)
            result[here] = fit(np.flatnonzero(fold != number), here)
        return result

    def constants(self, *, cache: bool = False, store: bool = True) -> Fit:
        """The best k, T and weights."""

        def fit(learned: Any, measured: Any) -> Any:
            sources = self.best_column(learned)[:, None][:, : int(store)]  # (n, 0 or 1)
            if cache:
                sources = np.concatenate([sources, self._best_cache(learned, sources)[0]], axis=1)
            weights, _ = best_weights(self.log_lm[learned], sources[learned])
            return mix_sources(self.log_lm[measured], sources[measured], weights)

        return fit

    def gate(self, *, matches: bool = False, cache: bool = False) -> Fit:
        """A gate over the store's temperatures, and what else is asked for."""
        table = self.table

        def fit(learned: Any, measured: Any) -> Any:
            lesson, kinds = gate_lesson(table, self._chosen(learned), slice(None))
            kept = [number for number, source in enumerate(kinds) if source.kind == "store" or matches]
            sources, kinds = lesson.sources[:, kept], tuple(kinds[number] for number in kept)
            if cache:
                column, temperature = self._best_cache(learned, sources[:, :1])
                sources = np.concatenate([sources, column], axis=1)
                kinds = (*kinds, MemorySource("cache", 0, temperature))
            features = lesson.features if matches else lesson.features[:, : len(FEATURES)]
            whole = Lesson(features, lesson.log_lm, sources, lesson.document, lesson.store_sources)
            names = tuple(f"feature {number}" for number in range(features.shape[1]))
            return gated_log_p(train_gate(whole.select(learned), names, kinds), whole.select(measured))

        return fit


def perplexity(log_p: Any) -> float:
    """exp of the mean −ln p."""
    return float(np.exp(-np.mean(log_p)))
