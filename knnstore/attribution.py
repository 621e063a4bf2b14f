"""Attribute the probability of a text to its sources: the LM, and each document of the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from knnstore.neighbours import ABSENT
from knnstore.scoring.passes import Clock, Pass

if TYPE_CHECKING:
    from knnstore.attachment.attach import Joined
    from knnstore.datastore.documents import DocumentName
    from knnstore.mixing.mixture import Credit
    from knnstore.neighbours import Neighbours
    from knnstore.passages import Passage, Passages
    from knnstore.progress import Reporter
    from knnstore.scoring.texts import Texts

_MEMORY = 2**30


@dataclass(frozen=True, slots=True)
class DocumentShare:
    """The contribution of a document: ``tokens``, the sum of its shares in all tokens, and ``share``, of the text.

    ``passage``: the passage with the largest share in a single token.
    """

    document: DocumentName
    tokens: float
    share: float
    passage: Passage


@dataclass(frozen=True, slots=True)
class Attribution:
    """Shares in a text of ``tokens`` tokens: ``store`` + ``lm`` + ``cache`` + ``matches`` = 1.

    A document's share in a token is λ Σ softmax(−d/T) / p over its neighbours with that token; the shares of all
    documents add up to ``store``. ``lm`` is (1 − λ) p_LM / p. ``cache`` and ``matches`` are the shares of the text's
    own past and of exact matches in the store, if the mixture uses them.
    """

    tokens: int
    store: float
    lm: float
    documents: tuple[DocumentShare, ...]
    cache: float = 0.0
    matches: float = 0.0


class Ledger:
    """Sums the shares in the tokens of a text by document."""

    def __init__(self, passages: Passages) -> None:
        self._passages = passages
        self._tokens = 0
        self._cache = self._matches = 0.0
        self._earned: dict[int, float] = {}
        self._best: dict[int, tuple[float, int]] = {}  # by document: its largest credit, and the row of that

    def add(self, neighbours: Neighbours, credit_of_tokens: Credit) -> None:
        """Add tokens with their neighbours, including rows, and the credit of these."""
        assert neighbours.rows is not None
        self._tokens += len(credit_of_tokens.store)
        self._cache += float(credit_of_tokens.cache.sum())
        self._matches += float(credit_of_tokens.matches.sum())
        earning = credit_of_tokens.credit > 0
        credit, rows = credit_of_tokens.credit[earning], neighbours.rows[earning]
        order = np.argsort(-credit, kind="stable")  # so that the first entry of a document is its best
        credit, rows = credit[order], rows[order]
        documents, first, inverse = np.unique(self._passages.documents(rows), return_index=True, return_inverse=True)
        sums = np.bincount(inverse, weights=credit, minlength=len(documents))
        for document, place, earned in zip(documents.tolist(), first.tolist(), sums.tolist(), strict=True):
            self._earned[document] = self._earned.get(document, 0.0) + earned
            best = (float(credit[place]), int(rows[place]))
            self._best[document] = max(self._best.get(document, (0.0, ABSENT)), best, key=lambda pair: pair[0])

    def attribution(self) -> Attribution:
        """Return the attribution of all tokens added so far, with documents in descending order of contribution."""
        count = max(1, self._tokens)
        store = sum(self._earned.values()) / count
        ranked = sorted(self._earned, key=lambda document: (-self._earned[document], document))
        documents = tuple(
            DocumentShare(
                self._passages.document(document),
                self._earned[document],
                self._earned[document] / count,
                self._passages.at(self._best[document][1]),
            )
            for document in ranked
        )
        cache, matches = self._cache / count, self._matches / count
        return Attribution(self._tokens, store, 1 - store - cache - matches, documents, cache, matches)


def attribute_texts(joined: Joined, texts: Texts, reporter: Reporter) -> Attribution:
    """Return the attribution of texts, which are read in the same windows as the store's keys."""
    mixed_by = joined.mixed_by
    mixture, cache = mixed_by.mixture, mixed_by.setting.cache
    reading = Pass(
        joined.model, joined.recipe, joined.search, _MEMORY, Clock(), reporter, cache, suffixes=mixed_by.suffixes
    )
    ledger = Ledger(joined.passages)
    for block in reading.blocks(texts, mixture.k, "attribute", lambda _: (mixed_by.setting.cache_temperature,)):
        tokens = block.tokens
        ledger.add(block.evidence.neighbours, mixture.credit(block.evidence, tokens.targets, tokens.log_p))
    return ledger.attribution()
