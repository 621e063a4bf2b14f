"""An LM's scores of a text, and cross-validated mixtures of them with neighbours."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from experiments.material import perplexity
from knnstore.datastore.manifest import KeyRecipe
from knnstore.lm.forward import KeyModel
from knnstore.lm.scoring import ScoredTokens, window_scores
from knnstore.mixing.interpolation import mix
from knnstore.mixing.knn import target_probabilities
from knnstore.neighbours import Neighbours
from knnstore.scoring.best_setting import choose
from knnstore.scoring.crossvalidation import FOLDS, folds_of
from knnstore.scoring.grid import make_grid
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.texts import Texts, texts_of_files
from knnstore.windows import cut_windows

_BATCH_TOKENS = 4096


def some_texts(paths: list[str], model: KeyModel, most_tokens: int) -> Texts:
    """Return a piece of each document below the paths, equally long, with ``most_tokens`` tokens in total."""
    _, texts = texts_of_files(ScoreOptions(text=tuple(paths)), model.loaded, special=True)
    each = max(1, most_tokens // len(texts.names))
    kept = np.minimum(texts.tokens, each)
    begins = (texts.tokens - kept) // 2  # from the middle, without title page or index
    pieces = [texts.read(number, int(b), int(b + kept[number])) for number, b in enumerate(begins)]
    ids = np.concatenate(pieces)
    size = np.round(texts.bytes * kept / texts.tokens).astype(np.int64)
    return Texts(texts.names, ids, np.cumsum(kept) - kept, kept, size, texts.digests)


@dataclass(frozen=True)
class Scores:
    """An LM's scores of texts: ``tokens`` in order, and the ``document`` of each, int64 (n,)."""

    tokens: ScoredTokens
    document: Any

    @cached_property
    def fold(self) -> Any:
        """Return the fold in which each token is held out: int64 (n,)."""
        return folds_of(self.document)[0]

    def kept_out(self, neighbours: Neighbours) -> float:
        """Return the perplexity with the neighbours of every token, with k, T and λ chosen on the other folds."""
        grid = make_grid(ScoreOptions(), neighbours.distances.shape[1], neighbours)
        knn = target_probabilities(neighbours, self.tokens.targets, grid.ks, grid.temperatures)
        log_lm, log_p = self.tokens.log_p, np.empty(len(self.document))
        for number in range(FOLDS):
            held_out, others = np.flatnonzero(self.fold == number), np.flatnonzero(self.fold != number)
            chosen = choose(grid, log_lm[others], knn[others], None)
            column = knn[held_out, grid.ks.index(chosen.k), grid.temperatures.index(chosen.temperature)]
            log_p[held_out] = mix(log_lm[held_out], column, chosen.lambda_)
        return perplexity(log_p)


def scores_of(model: KeyModel, texts: Texts, recipe: KeyRecipe) -> Scores:
    """Run the LM over the texts, in the windows of a store's recipe."""
    windows = cut_windows(texts.first, texts.tokens, context=recipe.context, stride=recipe.stride)
    parts = list(window_scores(model, windows, texts.read, _BATCH_TOKENS, texts.source))
    order = np.argsort(np.concatenate([part.rows for part in parts]))
    tokens = ScoredTokens.joined(parts, order)
    return Scores(tokens, np.searchsorted(texts.first + texts.tokens, tokens.rows, side="right"))
