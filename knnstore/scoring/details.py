"""Data of a report page beyond the totals: numbers per token, a sample of the grid, and the extreme tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from knnstore.mixing.evidence import Evidence
from knnstore.passages import Passages
from knnstore.scoring.best_setting import surface
from knnstore.scoring.columns import Columns
from knnstore.scoring.grid import Grid, make_grid

if TYPE_CHECKING:
    from knnstore.arrays import Float32, Float64, Int64
    from knnstore.datastore.stores import Stores
    from knnstore.lm.loading import LoadedModel
    from knnstore.mixing.mixture import Mixed, Mixture
    from knnstore.scoring.options import ScoreOptions
    from knnstore.scoring.passes import Block
    from knnstore.scoring.search import StoresSearch
    from knnstore.scoring.texts import Texts

_SAMPLE = 20_000  # approximate number of tokens for the surfaces
_EACH = 8  # numbers of most helped and most harmed tokens shown
_NEIGHBOURS = 3
_CONTEXT = 24
_COUNTED_ROWS = 2**25


@dataclass(frozen=True, slots=True)
class ShownNeighbour:
    """A neighbour of an extreme token: its document, the text before it, its token and its distance."""

    source: str
    before: str
    token: str
    distance: float


@dataclass(frozen=True, slots=True)
class Telling:
    """A token that the store helped or harmed most: its document, text, and probability by LM and mixture."""

    document: str
    before: str
    token: str
    lm_p: float
    p: float
    neighbours: tuple[ShownNeighbour, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Details:
    """Numbers of n reported tokens, and the data of the figures.

    ``document``, ``log_lm``, ``log_p``, ``weight`` (of all sources but the LM), ``distance`` (of the first neighbour,
    in units of ``spread``), ``frequency`` (of the token, per million tokens of the store): (n,). ``first_choice``:
    (n, 3), p of the LM's first choice by LM and by mixture (NaN with a cache), and whether it was right.
    ``perplexities`` and ``lambdas``: (ks, temperatures) of ``grid``; ``by_lambda``: (temperatures, λs) at the
    setting's k.
    """

    document: Int64
    log_lm: Float64
    log_p: Float64
    weight: Float64
    distance: Float32
    spread: float
    frequency: Float64
    first_choice: Float64
    grid: Grid
    perplexities: Float64
    lambdas: Float64
    lambda_steps: tuple[float, ...]
    by_lambda: Float64
    helped: tuple[Telling, ...]
    harmed: tuple[Telling, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Extreme:
    """A candidate for the tokens that the store helped or harmed most, to be explained once all are known."""

    gain: float
    row: int
    target: int
    key: Float32
    lm_p: float
    p: float


@dataclass(slots=True)
class DetailsGatherer:
    """Gathers details from the blocks of a reporting pass."""

    mixture: Mixture
    options: ScoreOptions
    tokens: int
    rows: int
    columns: Columns = field(default_factory=Columns)
    grid: Grid | None = None
    extremes: list[_Extreme] = field(default_factory=list)

    def add(self, block: Block, mixed: Mixed) -> None:
        """Add a block and its mixed probabilities."""
        tokens, neighbours = block.tokens, block.evidence.neighbours
        self.grid = self.grid or make_grid(replace(self.options, k=None, temperature=None), self.rows, neighbours)
        sample = np.arange(0, len(tokens.rows), max(1, self.tokens // _SAMPLE))
        sampled, log_lm = Evidence(neighbours.select(sample)), tokens.log_p[sample]
        ks = tuple(k for k in self.grid.ks if k <= neighbours.values.shape[1])
        self.grid = Grid(ks, self.grid.temperatures)
        self.columns.append(
            document=block.document,
            target=tokens.targets,
            log_lm=tokens.log_p,
            log_p=mixed.log_p,
            weight=mixed.weight,
            distance=neighbours.distances[:, 0],
            first_choice=self._first_choice(block),
            sampled_log_lm=log_lm,
            sampled_knn=sampled.store_p(tokens.targets[sample], log_lm, ks, self.grid.temperatures),
        )
        gain = mixed.log_p - tokens.log_p
        order = np.argsort(gain, kind="stable")
        for i in {*order[:_EACH].tolist(), *order[-_EACH:].tolist()}:
            key = tokens.keys[i].copy()
            lm_p, p = float(np.exp(tokens.log_p[i])), float(np.exp(mixed.log_p[i]))
            self.extremes.append(_Extreme(float(gain[i]), int(tokens.rows[i]), int(tokens.targets[i]), key, lm_p, p))

    def _first_choice(self, block: Block) -> Float64:
        tokens, evidence = block.tokens, block.evidence
        lm = np.exp(tokens.top_log_p)
        if evidence.cache is None:
            p = np.exp(self.mixture.log_p(evidence, tokens.top, tokens.top_log_p))
        else:  # the cache's probabilities are only kept for the tokens of the text
            p = np.full(len(lm), np.nan)
        return np.stack([lm, p, tokens.top == tokens.targets], axis=1)

    def details(self, texts: Texts, store: Stores, model: LoadedModel, search: StoresSearch) -> Details:
        """Return the gathered details, with the frequencies of the tokens, and neighbours of the extreme ones."""
        column = self.columns
        assert self.grid is not None
        log_lm, knn = column["sampled_log_lm"], column["sampled_knn"]
        losses, lambdas = surface(log_lm, knn)
        steps = tuple(np.round(np.linspace(0, 0.95, 20), 2).tolist())
        k = int(np.argmin(np.abs(np.array(self.grid.ks) - self.mixture.setting.k)))
        lm = np.exp(log_lm)[:, None]
        by_lambda = np.stack([-np.log((1 - step) * lm + step * knn[:, k]).mean(axis=0) for step in steps], axis=1)
        counts = _frequencies(store)
        chosen = sorted(self.extremes, key=lambda extreme: extreme.gain)
        worst, best = chosen[:_EACH], chosen[::-1][:_EACH]
        spread = self.mixture.spread if self.mixture.gate else float(np.median(column["distance"])) or 1.0
        return Details(
            column["document"],
            column["log_lm"],
            column["log_p"],
            column["weight"],
            np.asarray(column["distance"] / spread, np.float32),
            spread,
            counts[column["target"]],
            column["first_choice"],
            self.grid,
            np.exp(losses),
            lambdas,
            steps,
            np.exp(by_lambda),
            _explained([extreme for extreme in best if extreme.gain > 0], texts, store, model, search),
            _explained([extreme for extreme in worst if extreme.gain < 0], texts, store, model, search),
        )


def _frequencies(store: Stores) -> Float64:
    """Return how often each token occurs per million tokens of the store's first 2²⁵: float64 (vocabulary,)."""
    counts, left = np.zeros(store.manifest.model.vocabulary), _COUNTED_ROWS
    for segment in store.segments:
        for begin in range(0, min(segment.rows, left), 2**20):
            values = segment.values(begin, min(begin + 2**20, segment.rows)).astype(np.int64)
            counts += np.bincount(values, minlength=len(counts))
        left = max(left - segment.rows, 0)
    per_million: Float64 = counts * 1e6 / max(counts.sum(), 1)
    return per_million


def _explained(
    extremes: list[_Extreme], texts: Texts, store: Stores, model: LoadedModel, search: StoresSearch
) -> tuple[Telling, ...]:
    if not extremes:
        return ()
    neighbours = search(np.stack([extreme.key for extreme in extremes]), min(_NEIGHBOURS, store.rows), rows=True)
    passages = Passages(store, model.decode)
    result = []
    assert neighbours.rows is not None
    for extreme, rows, distances in zip(extremes, neighbours.rows, neighbours.distances, strict=True):
        document = int(texts.documents(np.array(extreme.row)))
        before = model.decode(texts.before(extreme.row, _CONTEXT).tolist())
        near = []
        for row, distance in zip(rows.tolist(), distances.tolist(), strict=True):
            if row >= 0:
                passage = passages.at(row, before=_CONTEXT, after=0)
                near.append(ShownNeighbour(str(passage.document), passage.before, passage.token, distance))
        token = model.decode([extreme.target])
        result.append(Telling(texts.names[document], before, token, extreme.lm_p, extreme.p, tuple(near)))
    return tuple(result)
