"""Pass over a text with the LM, block by block, and gather what each block's tokens are predicted from."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from knnstore.arrays import Float32, Int64
from knnstore.datastore.manifest import KeyRecipe
from knnstore.errors import NumericsError
from knnstore.lm.forward import KeyModel
from knnstore.lm.loading import LoadedModel
from knnstore.lm.scoring import ScoredTokens
from knnstore.mixing.cache import CacheScores, Past, cache_probabilities
from knnstore.mixing.evidence import Evidence
from knnstore.mixing.features import Outlook
from knnstore.mixing.matches import Matches
from knnstore.neighbours import Neighbours
from knnstore.progress import Reporter
from knnstore.scheduling import Runner
from knnstore.scoring.batches import scored_parts
from knnstore.scoring.texts import Texts
from knnstore.suffix_array.contexts import contexts_of
from knnstore.suffix_array.search import MATCH_BYTES, Suffixes
from knnstore.windows import cut_windows
from knnstore.wording import option

_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
# Share of a block's memory that its search may use; queries and neighbours take the rest.
_SEARCH_SHARE = 0.6
_MOST_BLOCK_TOKENS = 2**17

Temperatures = Callable[[Neighbours], tuple[float, ...]]


@dataclass(slots=True)
class Clock:
    """Seconds spent so far in each step."""

    lm: float = 0.0
    search: float = 0.0
    mix: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Scored tokens of consecutive rows of the texts, in row order, and what they are predicted from.

    ``document``: int64 (n,), the number of each token's document among the texts.
    """

    tokens: ScoredTokens
    document: Int64
    evidence: Evidence


class BlockSearch(Protocol):
    """Finds the neighbours of a block."""

    @property
    def stores(self) -> int:
        """Return the number of stores that are searched."""

    def __call__(self, queries: Float32, k: int, /, *, advance: Callable[[float], None]) -> Neighbours:
        """Return the k nearest keys of float32 queries (n, d); ``advance`` is called with the queries processed."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """Passes over texts with one LM and one search. ``memory``: bytes for a block; ``cache``: its number of pairs.

    ``suffixes``: the store's exact-match memory, if it is used. ``runner``: whose workers run the LM; None for this
    process.
    """

    model: KeyModel
    recipe: KeyRecipe
    search: BlockSearch
    memory: int
    clock: Clock
    reporter: Reporter
    cache: int = 0
    suffixes: Suffixes | None = None
    runner: Runner | None = None

    def blocks(
        self, texts: Texts, k: int, stage: str, cache_temperatures: Temperatures | None = None
    ) -> Iterator[Block]:
        """Yield the tokens of the texts, block by block, with their k nearest neighbours.

        Blocks are as large as memory allows, because each block reads every probed list once. The temperatures of the
        cache may depend on the neighbours of the first block.
        """
        past: Past | None = None
        temperatures: tuple[float, ...] = ()
        # a token's keys and neighbours, the latter once more per store while the results of the search are merged
        each = 4 * self.recipe.dimension + (1 + self.search.stores) * 12 * k + (MATCH_BYTES if self.suffixes else 0)
        size = int(min(max(1024, self.memory * (1 - _SEARCH_SHARE) / each), _MOST_BLOCK_TOKENS))
        total = len(texts.ids)
        count = -(-total // size)
        for number in range(count):
            begin, end = total * number // count, total * (number + 1) // count
            part = f" {number + 1}/{count}" if count > 1 else ""
            started = time.perf_counter()
            with self.reporter.bar(f"{stage}, LM{part}", end - begin, "tokens") as advance:
                tokens = self._score_rows(texts, begin, end, advance)
            self.clock.lm += time.perf_counter() - started
            started = time.perf_counter()
            with self.reporter.bar(f"{stage}, search{part}", end - begin, "tokens") as advance:
                neighbours = self.search(tokens.keys, k, advance=advance)
            self.clock.search += time.perf_counter() - started
            document = texts.documents(tokens.rows)
            started = time.perf_counter()
            cache = None
            if self.cache and cache_temperatures is not None:
                temperatures = temperatures or cache_temperatures(neighbours)
                p, past = cache_probabilities(
                    tokens.keys, tokens.targets, document, past, size=self.cache, temperatures=temperatures
                )
                cache = CacheScores(p, temperatures)
            matches = find_matches(self.suffixes, texts.ids, texts.first[document], tokens.rows)
            self.clock.search += time.perf_counter() - started
            yield Block(tokens, document, Evidence(neighbours, outlook_of(tokens), cache, matches))

    def _score_rows(self, texts: Texts, begin: int, end: int, advance: Callable[[float], None]) -> ScoredTokens:
        """Return the LM's predictions of rows ``[begin, end)`` of the texts, in order."""
        windows = cut_windows(
            texts.first, texts.tokens, context=self.recipe.context, stride=self.recipe.stride, rows=(begin, end)
        )
        loaded = self.model.loaded
        batch_tokens = _BATCH_TOKENS.get(loaded.device.type, _BATCH_TOKENS["cpu"])
        parts = []
        for part in scored_parts(
            self.model,
            self.recipe.layer,
            windows,
            texts.read,
            batch_tokens,
            sources=texts.source,
            runner=self.runner,
        ):
            parts.append(part)
            advance(len(part.rows))
        rows = np.concatenate([part.rows for part in parts])
        # windows across a border are run for both blocks; each keeps its own rows
        order = np.argsort(rows)
        order = order[(rows[order] >= begin) & (rows[order] < end)]
        scored = ScoredTokens.joined(parts, order)
        _require_numbers(scored, texts, loaded)
        return scored


def outlook_of(tokens: ScoredTokens) -> Outlook:
    """Return the LM's expectations at the positions of the tokens."""
    return Outlook(tokens.entropy, tokens.leading, tokens.leading_log_p)


def find_matches(
    suffixes: Suffixes | None, ids: NDArray[Any], first: Int64, rows: Int64
) -> tuple[Matches, Matches] | None:
    """Return matches in the store of the text before ``rows`` of ``ids``, in documents that begin at ``first``.

    None without ``suffixes``.
    """
    if suffixes is None:
        return None
    return suffixes.matches(contexts_of(ids, first, rows, suffixes.packing.nothing))


def search_memory(memory: int) -> int:
    """Return the bytes that the search may use, out of ``memory`` for a block."""
    return int(memory * _SEARCH_SHARE)


def _require_numbers(scored: ScoredTokens, texts: Texts, loaded: LoadedModel) -> None:
    finite = np.isfinite(scored.log_p)
    if finite.all():
        return
    row = int(scored.rows[np.argmin(finite)])
    document = int(np.searchsorted(texts.first, row, side="right")) - 1
    raise NumericsError(
        f"{texts.names[document]}, token {row - int(texts.first[document])}: {loaded.identity.name} in "
        f"{loaded.dtype} gives a probability that isn't a number; try {option('dtype', 'float32')}"
    )
