"""What a report page shows beyond the totals: every token's numbers, a sample of the grid, and telling tokens."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from knnstore.datastore.stores import Stores
from knnstore.lm.loading import LoadedModel
from knnstore.passages import Passages
from knnstore.score.mixture import Mixed, Mixture, store_probabilities
from knnstore.score.options import ScoreOptions
from knnstore.score.passes import Block
from knnstore.score.search import Search
from knnstore.score.texts import Texts
from knnstore.score.tuning import Grid, make_grid, surface

_SAMPLE = 20_000  # tokens that the surfaces are drawn from
_EACH = 8  # most helped and most harmed tokens that are shown
_NEIGHBOURS = 3
_CONTEXT = 24
_COUNTED_ROWS = 2**25


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour of a telling token: where it is from, what stands there, its distance."""

    source: str
    before: str
    token: str
    distance: float


@dataclass(frozen=True, slots=True)
class Telling:
    """A token that the store helped or harmed most: its document, text, and probabilities by LM and mixture."""

    document: str
    before: str
    token: str
    lm_p: float
    p: float
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Details:
    """Numbers of n reported tokens, and what is drawn from them.

    ``document``, ``log_lm``, ``log_p``, ``weight`` (of all but the LM), ``distance`` (of the first neighbour, in units
    of ``spread``), ``frequency`` (of the token, a million in the store): (n,). ``first_choice``: (n, 3), p by LM and by
    mixture of the LM's first choice and whether it was right; the mixture's is NaN with a cache. ``perplexities`` and
    ``lambdas``: (ks, temperatures) of ``grid``; ``by_lambda``: (temperatures, λs) at the setting's k.
    """

    document: Any
    log_lm: Any
    log_p: Any
    weight: Any
    distance: Any
    spread: float
    frequency: Any
    first_choice: Any
    grid: Grid
    perplexities: Any
    lambdas: Any
    lambda_steps: tuple[float, ...]
    by_lambda: Any
    helped: tuple[Telling, ...]
    harmed: tuple[Telling, ...]


@dataclass(slots=True)
class DetailsGatherer:
    """Takes in blocks of a reporting pass."""

    mixture: Mixture
    options: ScoreOptions
    tokens: int
    rows: int
    parts: dict[str, list[Any]] = field(default_factory=dict)
    grid: Grid | None = None
    telling: list[tuple[float, int, int, Any, float, float]] = field(default_factory=list)

    def add(self, block: Block, mixed: Mixed) -> None:
        """Take in a block and what the mixture makes of it."""
        tokens = block.tokens
        self.grid = self.grid or make_grid(replace(self.options, k=None, temperature=None), self.rows, block.neighbours)
        step = max(1, self.tokens // _SAMPLE)
        sample = np.arange(0, len(tokens.rows), step)
        sampled = replace(
            block,
            tokens=replace(tokens, targets=tokens.targets[sample], log_p=tokens.log_p[sample]),
            neighbours=block.neighbours.select(sample),
        )
        ks = tuple(k for k in self.grid.ks if k <= block.neighbours.values.shape[1])
        self.grid = Grid(ks, self.grid.temperatures)
        columns = {
            "document": block.document,
            "target": tokens.targets,
            "log_lm": tokens.log_p,
            "log_p": mixed.log_p,
            "weight": mixed.weight,
            "distance": block.neighbours.distances[:, 0],
            "first_choice": self._first_choice(block),
            "sampled_log_lm": tokens.log_p[sample],
            "sampled_knn": store_probabilities(sampled, ks, self.grid.temperatures),
        }
        for name, column in columns.items():
            self.parts.setdefault(name, []).append(column)
        gain = mixed.log_p - tokens.log_p
        order = np.argsort(gain, kind="stable")
        for i in {*order[:_EACH].tolist(), *order[-_EACH:].tolist()}:
            key = tokens.keys[i].copy()
            lm_p, p = float(np.exp(tokens.log_p[i])), float(np.exp(mixed.log_p[i]))
            self.telling.append((float(gain[i]), int(tokens.rows[i]), int(tokens.targets[i]), key, lm_p, p))

    def _first_choice(self, block: Block) -> Any:
        tokens = block.tokens
        lm = np.exp(tokens.top_log_p)
        if block.cache is None:
            asked = replace(block, tokens=replace(tokens, targets=tokens.top, log_p=tokens.top_log_p))
            p = np.exp(self.mixture.apply(asked).log_p)
        else:  # what the cache says of tokens other than the text's own isn't kept
            p = np.full(len(lm), np.nan)
        return np.stack([lm, p, tokens.top == tokens.targets], axis=1)

    def details(self, texts: Texts, store: Stores, model: LoadedModel, search: Search) -> Details:
        """All that was gathered, with the frequencies of the tokens and the telling ones explained."""
        column = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        assert self.grid is not None
        log_lm, knn = column["sampled_log_lm"], column["sampled_knn"]
        losses, lambdas = surface(log_lm, knn)
        steps = tuple(np.round(np.linspace(0, 0.95, 20), 2).tolist())
        k = int(np.argmin(np.abs(np.array(self.grid.ks) - self.mixture.setting.k)))
        lm = np.exp(log_lm)[:, None]
        by_lambda = np.stack([-np.log((1 - step) * lm + step * knn[:, k]).mean(axis=0) for step in steps], axis=1)
        counts = _frequencies(store)
        chosen = sorted(self.telling, key=lambda one: one[0])
        worst, best = chosen[:_EACH], chosen[::-1][:_EACH]
        spread = self.mixture.spread if self.mixture.gate else float(np.median(column["distance"])) or 1.0
        return Details(
            column["document"],
            column["log_lm"],
            column["log_p"],
            column["weight"],
            column["distance"] / spread,
            spread,
            counts[column["target"]],
            column["first_choice"],
            self.grid,
            np.exp(losses),
            lambdas,
            steps,
            np.exp(by_lambda),
            _explained([one for one in best if one[0] > 0], texts, store, model, search),
            _explained([one for one in worst if one[0] < 0], texts, store, model, search),
        )


def _frequencies(store: Stores) -> Any:
    """How often each token occurs a million tokens of the store (of its first 2²⁵): float64 (vocabulary,)."""
    counts, left = np.zeros(store.manifest.model.vocabulary), _COUNTED_ROWS
    for segment in store.segments:
        for begin in range(0, min(segment.rows, left), 2**20):
            values = segment.values(begin, min(begin + 2**20, segment.rows)).astype(np.int64)
            counts += np.bincount(values, minlength=len(counts))
        left = max(left - segment.rows, 0)
    return counts * 1e6 / max(counts.sum(), 1)


def _explained(
    chosen: list[tuple[float, int, int, Any, float, float]],
    texts: Texts,
    store: Stores,
    model: LoadedModel,
    search: Search,
) -> tuple[Telling, ...]:
    if not chosen:
        return ()
    found = search(np.stack([one[3] for one in chosen]), min(_NEIGHBOURS, store.rows), rows=True)
    passages = Passages(store, model.decode)
    result = []
    assert found.rows is not None
    for (_, row, target, _, lm_p, p), rows, distances in zip(chosen, found.rows, found.distances, strict=True):
        document = int(np.searchsorted(texts.first + texts.tokens, row, side="right"))
        position = row - int(texts.first[document])
        before = model.decode(texts.read(document, max(0, position - _CONTEXT), position).tolist())
        near = []
        for neighbour, distance in zip(rows.tolist(), distances.tolist(), strict=True):
            if neighbour >= 0:
                passage = passages.at(neighbour, before=_CONTEXT, after=0)
                near.append(Neighbour(str(passage.document), passage.before, passage.token, distance))
        result.append(Telling(texts.names[document], before, model.decode([target]), lm_p, p, tuple(near)))
    return tuple(result)
