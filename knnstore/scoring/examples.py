"""Find tokens that the mixture predicts correctly and the LM doesn't, with the passages responsible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from knnstore.passages import Passages
from knnstore.scoring.result import Example

if TYPE_CHECKING:
    from knnstore.arrays import Bool, Float32
    from knnstore.datastore.stores import Stores
    from knnstore.lm.loading import LoadedModel
    from knnstore.mixing.mixture import Mixed
    from knnstore.passages import Passage
    from knnstore.scoring.passes import Block
    from knnstore.scoring.search import StoresSearch
    from knnstore.scoring.texts import Texts

_CANDIDATES = 64
_WANTED = 3
_CONTEXT_TOKENS = 24
_SHORTEST_WORD = 4


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A token that is the first choice of the mixture but not of the LM."""

    gain: float
    row: int
    target: int
    key: Float32
    lm_top: int
    lm_p_top: float
    lm_p: float
    store_p: float
    p: float


def whole_words(model: LoadedModel) -> Bool:
    """Return which tokens are whole words, long enough to be informative: bool (vocabulary,)."""
    texts = [model.decode([token]) for token in range(model.identity.vocabulary)]
    return np.array([text[:1] == " " and text[1:].isalpha() and len(text) > _SHORTEST_WORD for text in texts])


def candidates(block: Block, mixed: Mixed, telling: Bool) -> list[Candidate]:
    """Return the tokens of a block that are certainly first in the mixture and not in the LM, by gain.

    Certainly: no other token could be more probable, even with all of the remaining probability of store and LM.
    ``telling``: bool (vocabulary,), the tokens worth showing.
    """
    tokens = block.tokens
    lm_p, top_p, weight, store_p = np.exp(tokens.log_p), np.exp(tokens.top_log_p), mixed.weight, mixed.memory_p
    p = weight * store_p + (1 - weight) * lm_p
    rival = (1 - weight) * top_p + weight * (1 - store_p)
    gain = np.log(p) - tokens.log_p
    sure = np.flatnonzero((tokens.top != tokens.targets) & (p > rival) & telling[tokens.targets])
    best = sure[np.argsort(-gain[sure], kind="stable")[:_CANDIDATES]]
    return [
        Candidate(
            float(gain[i]),
            int(tokens.rows[i]),
            int(tokens.targets[i]),
            tokens.keys[i].copy(),
            int(tokens.top[i]),
            float(top_p[i]),
            float(lm_p[i]),
            float(store_p[i]),
            float(p[i]),
        )
        for i in best
    ]


def best_candidates(pool: list[Candidate]) -> list[Candidate]:
    """Return the best candidates of several blocks."""
    return sorted(pool, key=lambda candidate: -candidate.gain)[:_CANDIDATES]


def explain(
    ranked: list[Candidate], texts: Texts, store: Stores, model: LoadedModel, *, search: StoresSearch, k: int
) -> tuple[Example, ...]:
    """Return the best candidates as examples, each with a different word."""
    words: dict[int, Candidate] = {}
    for candidate in ranked:
        words.setdefault(candidate.target, candidate)
    chosen = list(words.values())[:_WANTED]
    if not chosen:
        return ()
    neighbours = search(np.stack([candidate.key for candidate in chosen]), k, rows=True)
    assert neighbours.rows is not None
    agreeing = [int(np.argmax(values == c.target)) for values, c in zip(neighbours.values, chosen, strict=True)]
    passages = Passages(store, model.decode)
    return tuple(
        _example(candidate, texts, model, passages.at(int(rows[index]), before=_CONTEXT_TOKENS, after=0))
        for candidate, rows, index in zip(chosen, neighbours.rows, agreeing, strict=True)
    )


def _example(candidate: Candidate, texts: Texts, model: LoadedModel, source: Passage) -> Example:
    return Example(
        context=model.decode(texts.before(candidate.row, _CONTEXT_TOKENS).tolist()),
        token=model.decode([candidate.target]),
        lm_token=model.decode([candidate.lm_top]),
        lm_p=candidate.lm_p_top,
        lm_p_token=candidate.lm_p,
        store_p_token=candidate.store_p,
        p_token=candidate.p,
        taught_by=str(source.document),
        passage=source.before,
    )
