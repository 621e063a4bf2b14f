"""Saved neighbours as a table of tokens, and mixtures fitted to some documents and measured on others."""

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
"""Maps rows to fit to and rows to measure on, to ln p of the latter."""


def saved_arguments(command: ArgumentParser) -> None:
    """Add the arguments of an experiment with saved neighbours."""
    command.add_argument("--neighbours", required=True, help="file by 'knnstore score --save-neighbours'")
    command.add_argument("--store", required=True, help="the store that was searched")


class Material:
    """A file of neighbours with its store."""

    def __init__(self, saved: SavedNeighbours, store: Datastore, *, matches: bool = True) -> None:
        """``matches``: whether to use the store's exact-match memory, if there is one."""
        self.saved, self.store, self._matches = saved, store, matches
        self._settings: dict[int, Setting] = {}

    @classmethod
    def of(cls, arguments: Namespace) -> "Material":
        """Open what ``saved_arguments`` name."""
        return cls(SavedNeighbours(arguments.neighbours), Datastore(store_path(arguments.store)))

    def _chosen(self, learned: Any) -> Setting:
        """Return the best k, λ and T of some rows; cached, because it is needed repeatedly."""
        key = hash(learned.tobytes())
        if key not in self._settings:
            table = self.table
            knn = table["knn"][learned]
            self._settings[key] = choose(table.grid, self.log_lm[learned], knn, None)
        return self._settings[key]

    def best_column(self, learned: Any) -> Any:
        """Return p_kNN of every token at the best k and T of some rows: float32 (n,)."""
        setting, table = self._chosen(learned), self.table
        k, t = table.grid.ks.index(setting.k), table.grid.temperatures.index(setting.temperature)
        return table["knn"][:, k, t]

    def _best_cache(self, learned: Any, others: Any) -> tuple[Any, float]:
        """Return p_cache, float32 (n, 1), and the temperature that is best with other sources (n, s) on some rows."""
        columns = self.table["cache"]
        losses = [
            best_weights(self.log_lm[learned], np.concatenate([others, column[:, None]], axis=1)[learned])[1]
            for column in columns.T
        ]
        best = int(np.argmin(losses))
        return columns[:, best, None], self.table.cache_temperatures[best]

    @cached_property
    def table(self) -> TuningTable:
        """Return the table, with features, matches if the store has them, and the cache if it was saved."""
        options = ScoreOptions(adaptive=True)
        suffixes = open_suffixes(self.store) if self._matches else None
        return gather_saved(self.saved, options, suffixes, TerminalReporter())

    @cached_property
    def targets(self) -> Any:
        """Return the tokens: int64 (n,)."""
        return np.concatenate([block.tokens.targets for block in self.saved.blocks()])

    @property
    def log_lm(self) -> Any:
        """Return ln p_LM: float64 (n,)."""
        return self.table["log_lm"]

    @property
    def about(self) -> str:
        """Return a description of the data."""
        facts = self.saved.facts
        return (
            f"{facts.store}: {facts.rows:,} keys, k {facts.k}; {len(facts.names)} documents, {len(self.saved):,} "
            "tokens, each measured with what was fitted to the other four fifths"
        )

    def kept_out(self, fit: Fit) -> Any:
        """Return ln p of every token by a fit to the other parts: float64 (n,)."""
        fold, _ = folds_of(self.table["document"])
        result = np.empty(len(fold))
        for number in range(FOLDS):
            held_out = np.flatnonzero(fold == number)
            result[held_out] = fit(np.flatnonzero(fold != number), held_out)
        return result

    def constants(self, *, cache: bool = False, store: bool = True) -> Fit:
        """Return the fit of k, T and weights."""

        def fit(learned: Any, measured: Any) -> Any:
            sources = self.best_column(learned)[:, None][:, : int(store)]  # (n, 0 or 1)
            if cache:
                sources = np.concatenate([sources, self._best_cache(learned, sources)[0]], axis=1)
            weights, _ = best_weights(self.log_lm[learned], sources[learned])
            return mix_sources(self.log_lm[measured], sources[measured], weights)

        return fit

    def gate(self, *, matches: bool = False, cache: bool = False) -> Fit:
        """Return the fit of a gate over the store's temperatures, and the other requested sources."""
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
    """Return exp of the mean −ln p."""
    return float(np.exp(-np.mean(log_p)))
