"""One pass over a text: the LM block by block, the search of each block, and p_kNN of its tokens."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.datastore.manifest import KeyRecipe
from knnstore.datastore.store import Datastore
from knnstore.errors import NumericsError
from knnstore.index.exact import exact_search
from knnstore.index.search import Method, Searcher
from knnstore.lm.forward import KeyModel, ScoredTokens, window_scores
from knnstore.neighbours import Neighbours
from knnstore.score.options import ScoreOptions
from knnstore.score.texts import Texts
from knnstore.windows import cut_windows

_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
# Of the memory that is left for a block, what its search may use; queries and neighbours take the rest.
_SEARCH_SHARE = 0.6
_MOST_BLOCK_TOKENS = 2**17


@dataclass(slots=True)
class Clock:
    """Seconds spent so far."""

    lm: float = 0.0
    search: float = 0.0
    mix: float = 0.0


class Search:
    """How this run finds neighbours."""

    def __init__(self, store: Datastore, options: ScoreOptions, memory: int) -> None:
        self._store = store
        self._memory = memory
        self._quantised = options.quantised
        self._searcher = None if options.exact else Searcher(store)
        self.nprobe = None
        if self._searcher is not None:
            self.nprobe = min(options.nprobe or self._searcher.nprobe, self._searcher.plan.nlist)

    def __call__(self, queries: Any, k: int, *, rows: bool = False) -> Neighbours:
        """The k nearest keys of float32 queries (n, d)."""
        if self._searcher is None:
            return exact_search(self._store, queries, k, rows=rows, memory=self._memory)
        method: Method = "quantised" if self._quantised else "lists"
        return self._searcher.search(queries, k, self.nprobe, method=method, rows=rows, memory=self._memory)

    @property
    def recall(self) -> float | None:
        """What the index's self-check measured for this way of searching, if it did."""
        if self._searcher is None or self.nprobe != self._searcher.nprobe:
            return None
        check = self._searcher.check
        return check.recall_quantised if self._quantised else check.recall

    @property
    def words(self) -> str:
        """How neighbours are found, for people."""
        if self._searcher is None:
            return "exact: every key"
        how = "distances of the PQ codes" if self._quantised else "exact distances"
        recall = "" if self.recall is None else f", recall {self.recall:.3f} in the index's self-check"
        return f"{how} in {self.nprobe} of {self._searcher.plan.nlist} lists{recall}"


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Scored tokens of consecutive rows of the texts, in row order, and their neighbours."""

    tokens: ScoredTokens
    neighbours: Neighbours


def blocks(
    model: KeyModel, recipe: KeyRecipe, texts: Texts, search: Search, k: int, *, memory: int, clock: Clock
) -> Iterator[Block]:
    """The texts' tokens, block by block, with their k nearest neighbours.

    A block is as large as ``memory`` (bytes) lets it be, because each reads every probed list once.
    """
    # keys and neighbours of a token, the latter twice while a search hands them over
    each = 4 * recipe.dimension + 2 * 12 * k
    size = int(min(max(1024, memory * (1 - _SEARCH_SHARE) / each), _MOST_BLOCK_TOKENS))
    total = len(texts.ids)
    count = -(-total // size)
    for number in range(count):
        begin, end = total * number // count, total * (number + 1) // count
        started = time.perf_counter()
        tokens = _score_rows(model, recipe, texts, begin, end)
        clock.lm += time.perf_counter() - started
        started = time.perf_counter()
        neighbours = search(tokens.keys, k)
        clock.search += time.perf_counter() - started
        yield Block(tokens, neighbours)


def search_memory(memory: int) -> int:
    """Bytes that the search of a block may use, of ``memory`` for the block."""
    return int(memory * _SEARCH_SHARE)


def _score_rows(model: KeyModel, recipe: KeyRecipe, texts: Texts, begin: int, end: int) -> ScoredTokens:
    windows = cut_windows(texts.first, texts.tokens, context=recipe.context, stride=recipe.stride, rows=(begin, end))
    loaded = model.loaded
    batch_tokens = _BATCH_TOKENS.get(loaded.device.type, _BATCH_TOKENS["cpu"])
    parts = list(window_scores(model, windows, texts.read, batch_tokens, loaded.identity.vocabulary))
    rows = np.concatenate([part.rows for part in parts])
    # windows at a block's border are run by both blocks; each keeps its own rows
    order = np.argsort(rows)
    order = order[(rows[order] >= begin) & (rows[order] < end)]
    columns = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in ScoredTokens.__slots__}
    scored = ScoredTokens(**columns)
    if not np.isfinite(scored.log_p).all():
        row = int(scored.rows[np.argmin(np.isfinite(scored.log_p))])
        document = int(np.searchsorted(texts.first, row, side="right")) - 1
        raise NumericsError(
            f"{texts.names[document]}, token {row - int(texts.first[document])}: {loaded.identity.name} in "
            f"{loaded.dtype} gives a probability that isn't a number; try --dtype float32"
        )
    return scored
