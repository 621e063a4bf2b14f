"""Tokens that the store got right and the LM did not, with the passage that taught them."""

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
    """A token whose most probable value changed for the better."""

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
    """Return bool (vocabulary,): the tokens that are whole words, long enough to mean something to people."""
    texts = [model.decode([token]) for token in range(model.identity.vocabulary)]
    return np.array([text[:1] == " " and text[1:].isalpha() and len(text) > _SHORTEST_WORD for text in texts])


def candidates(block: Block, mixed: Mixed, telling: Bool) -> list[Candidate]:
    """The tokens of a block that the mixture surely puts first and the LM doesn't, by gain.

    Surely: all of the store's and the LM's probability that isn't the token's couldn't raise another above it.
    ``telling``: bool (vocabulary,), the tokens that are worth showing.
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


def best_candidates(found: list[Candidate]) -> list[Candidate]:
    """The best of several blocks' candidates."""
    return sorted(found, key=lambda candidate: -candidate.gain)[:_CANDIDATES]


def explain(
    found: list[Candidate], texts: Texts, store: Stores, model: LoadedModel, *, search: StoresSearch, k: int
) -> tuple[Example, ...]:
    """The best candidates as examples, each another word."""
    words: dict[int, Candidate] = {}
    for candidate in found:
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
