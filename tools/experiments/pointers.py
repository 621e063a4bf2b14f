"""Use successors of the last step's neighbours instead of a search (RetoMaton, Alon et al., ICML 2022).

A neighbour whose value was the actual next token has a successor in the store: the key of the next row of its document.
If there are enough successors, they are the neighbours of the next token, with exact distances; else the index is
searched. For comparison, another column omits the same share of searches at random and uses only the LM there.
"""

from argparse import ArgumentParser, Namespace
from functools import cached_property, partial
from typing import Any

import numpy as np

from experiments.material import perplexity
from experiments.output import Output
from experiments.scoring import Scores, scores_of, some_texts
from knnstore.datastore.store import Datastore, store_path
from knnstore.datastore.stores import Stores
from knnstore.errors import UsageError
from knnstore.lm.forward import key_model
from knnstore.lm.spec import LmSpec, default_model
from knnstore.mixing.interpolation import best_lambda, mix
from knnstore.mixing.knn import target_probabilities
from knnstore.neighbours import ABSENT, Neighbours
from knnstore.scoring.best_setting import choose
from knnstore.scoring.crossvalidation import FOLDS
from knnstore.scoring.grid import make_grid
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.search import StoresSearch

_FEWEST = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
_MEMORY = 2**30


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("--store", required=True, help="indexed store with one segment")
    command.add_argument("--text", nargs="+", required=True, help="files to score")
    command.add_argument("--model", default=default_model())
    command.add_argument("--tokens", type=int, default=16_000, help="maximum tokens, spread over the documents")
    command.add_argument("--k", type=int, default=1024)


def run(arguments: Namespace, output: Output) -> None:
    walk = Walk(arguments)
    base = output.computed("LM", lambda: perplexity(walk.scores.tokens.log_p))
    every = output.computed("every token searched", lambda: [1.0, walk.measure(0)[1], 0.0])
    measured = {str(n): output.computed(f"fewest {n}", partial(walk.measure, n)) for n in _FEWEST}
    rows = [["fewest successors", "searches", "perplexity", "searches left out at random"]]
    rows.append(["always searched", "100 %", f"{every[1]:.2f}", f"{every[1]:.2f}"])
    rows += [[n, f"{share:.0%}", f"{value:.2f}", f"{plain:.2f}"] for n, (share, value, plain) in measured.items()]
    output.show(rows, f"{walk.about}; LM alone {base:.2f}")

    def draw(axes: Any) -> None:
        shares = [100, *(100 * share for share, _, _ in measured.values())]
        axes.plot(shares, [every[1], *(each[1] for each in measured.values())], marker="o", label="successors")
        axes.plot(shares, [every[1], *(each[2] for each in measured.values())], marker="o", label="left out at random")
        axes.set(xlabel="searches, %", ylabel="perplexity")
        axes.legend()

    output.figure(draw)


class Walk:
    """A text with the neighbours of every token, traversed document by document."""

    def __init__(self, arguments: Namespace) -> None:
        self._arguments = arguments
        self._store = Datastore(store_path(arguments.store))
        if len(self._store.segments) > 1:
            raise UsageError(
                f"{self._store.name} has {len(self._store.segments)} segments: run 'knnstore compact' first"
            )

    @property
    def about(self) -> str:
        """Return a description of the data."""
        count = len(np.unique(self.scores.document))
        return (
            f"{self._store.name}: {self._store.rows:,} keys; {len(self.scores.document):,} tokens of {count} documents"
        )

    @cached_property
    def scores(self) -> Scores:
        """Return the LM's scores of the text."""
        recipe = self._store.manifest.key
        model = key_model(LmSpec(self._arguments.model, recipe.layer))
        return scores_of(model, some_texts(self._arguments.text, model, self._arguments.tokens), recipe)

    @cached_property
    def searched(self) -> Neighbours:
        """Return the neighbours of every token, with their rows."""
        search = StoresSearch(Stores([self._store]), ScoreOptions(), _MEMORY)
        return search(self.scores.tokens.keys, min(self._arguments.k, self._store.rows), rows=True)

    @cached_property
    def _keys(self) -> Any:
        segment = self._store.segments[0]
        return segment.keys(0, segment.rows)

    @cached_property
    def _next(self) -> tuple[Any, Any]:
        """Return the values of the store's rows, and whether the next row belongs to the same document."""
        segment = self._store.segments[0]
        within = np.ones(segment.rows, bool)
        table = segment.documents
        within[table.first_row + table.tokens - 1] = False
        return segment.values(0, segment.rows).astype(np.int64), within

    def successors(self, rows: Any, token: int) -> Any:
        """Return the rows that follow those of ``rows`` whose value is the token: int64 (n,)."""
        values, within = self._next
        rows = rows[rows != ABSENT]
        return rows[(values[rows] == token) & within[rows]] + 1

    def measure(self, fewest: int) -> tuple[float, float, float]:
        """Return the share of searches, the perplexity with successors, and with as many searches omitted at random.

        ``fewest``: minimum number of successors that replace a search; 0: always search.
        """
        neighbours, followed = self._followed(fewest)
        tokens, fold = self.scores.tokens, self.scores.fold
        grid = make_grid(ScoreOptions(), neighbours.distances.shape[1], self.searched)
        knn = target_probabilities(neighbours, tokens.targets, grid.ks, grid.temperatures)
        dropped = np.random.default_rng(0).permutation(followed)
        with_them, without = np.empty(len(fold)), np.empty(len(fold))
        for number in range(FOLDS):
            others = (fold != number) & ~followed
            chosen = choose(grid, tokens.log_p[others], knn[others], None)
            column = knn[:, grid.ks.index(chosen.k), grid.temperatures.index(chosen.temperature)]
            full = target_probabilities(self.searched, tokens.targets, (chosen.k,), (chosen.temperature,))[:, 0, 0]
            learned, held_out = (fold != number) & followed, fold == number
            own = float(best_lambda(tokens.log_p[learned], column[learned, None])[0][0]) if learned.any() else 0.0
            for result, kind, lambda_, p in (
                (with_them, ~followed, chosen.lambda_, column),
                (with_them, followed, own, column),
                (without, ~dropped, chosen.lambda_, full),
                (without, dropped, 0.0, full),
            ):
                result[held_out & kind] = mix(tokens.log_p[held_out & kind], p[held_out & kind], lambda_)
        return float(1 - followed.mean()), perplexity(with_them), perplexity(without)

    def _followed(self, fewest: int) -> tuple[Neighbours, Any]:
        """Return the neighbours of every token, and which are successors: bool (n,)."""
        searched, tokens = self.searched, self.scores.tokens
        assert searched.rows is not None
        distances, values, rows = searched.distances.copy(), searched.values.copy(), searched.rows.copy()
        followed = np.zeros(len(rows), bool)
        codec, every = self._store.segments[0].codec, self._next[0]
        for place in range(1, len(rows) if fewest else 0):
            if self.scores.document[place] != self.scores.document[place - 1]:
                continue
            after = self.successors(rows[place - 1], int(tokens.targets[place - 1]))
            if len(after) < fewest:
                continue
            away = np.square(codec.decode(self._keys[after]) - tokens.keys[place]).sum(axis=1)
            order = np.argsort(away, kind="stable")
            for column, filler, entries in (
                (distances, np.inf, away),
                (values, ABSENT, every[after]),
                (rows, ABSENT, after),
            ):
                column[place] = filler
                column[place, : len(order)] = entries[order]
            followed[place] = True
        return Neighbours(distances, values, rows), followed
