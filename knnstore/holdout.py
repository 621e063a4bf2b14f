"""Choose the documents that are held out of a store for measurement (integers in, integers out)."""

from collections.abc import Callable

import numpy as np

from knnstore.arrays import Int64

Repeats = Callable[[Int64], Int64]
"""Maps ascending numbers of documents, int64 (n,), to how many of their tokens other documents repeat, int64 (n,)."""

MOST_TOKENS = 250_000
_FEWEST_DOCUMENTS = 2
_SMALL_CORPUS = 4
_END_SHARE = 0.1
_SEED = 0
_SPARES = 3  # further documents examined per requested one, by number and by tokens
_SHARES = 20  # steps in which the repeated share of a document is rounded


def choose_heldout(
    tokens: Int64, share: float, most_tokens: int = MOST_TOKENS, repeats: Repeats | None = None
) -> Int64:
    """Return how many tokens at the end of each document are held out: int64 (documents,).

    Holds out whole documents, drawn with a fixed seed: ``share`` of them, at least two, with at most ``most_tokens`` in
    total. Among four times as many candidates, those least repeated according to ``repeats`` are preferred. In a corpus
    of fewer than four documents, or if no two whole documents fit, the last tenth of each (of two of them) is held out
    instead. A share of 0 holds out nothing.
    """
    heldout = np.zeros(len(tokens), np.int64)
    if share == 0 or not len(tokens):
        return heldout
    order = np.random.default_rng(_SEED).permutation(len(tokens))
    if len(tokens) >= _SMALL_CORPUS:
        wanted = max(_FEWEST_DOCUMENTS, round(share * len(tokens)))
        for candidates in (_least_repeated_first(tokens, order, wanted, most_tokens, repeats), order):
            taken = _whole_documents(tokens, candidates, wanted, most_tokens)
            if len(taken) >= _FEWEST_DOCUMENTS:
                heldout[taken] = tokens[taken]
                return heldout
        order = order[:_FEWEST_DOCUMENTS]
    heldout[order] = np.minimum((tokens[order] * max(share, _END_SHARE)).astype(np.int64), most_tokens // len(order))
    return heldout


def choose_heldout_pairs(
    tokens: Int64, share: float, most_tokens: int = MOST_TOKENS, repeats: Repeats | None = None
) -> Int64:
    """Return the same for pairs of texts, which are held out whole or not at all; none of fewer than four."""
    heldout = choose_heldout(tokens, share, most_tokens, repeats)
    return np.where(heldout == tokens, heldout, 0)


def choose_more_heldout(tokens: Int64, share: float, most_tokens: int, repeats: Repeats | None = None) -> Int64:
    """Return how many tokens at the end of each document added to a store are held out: int64 (documents,).

    Holds out whole documents, drawn with a fixed seed: ``share`` of them, with at most ``most_tokens`` in total,
    preferably the least repeated. There is no minimum number, because the store already has held-out documents.
    """
    heldout = np.zeros(len(tokens), np.int64)
    order = np.random.default_rng(_SEED).permutation(len(tokens))
    wanted = round(share * len(tokens))
    candidates = _least_repeated_first(tokens, order, wanted, most_tokens, repeats)
    taken = _whole_documents(tokens, candidates, wanted, most_tokens)
    heldout[taken] = tokens[taken]
    return heldout


def _least_repeated_first(tokens: Int64, order: Int64, wanted: int, most_tokens: int, repeats: Repeats | None) -> Int64:
    """Return ``order`` with a sample of documents moved to the front, sorted by the repeated share of their tokens.

    The sample includes all documents that would be chosen from ``order`` itself; they are chosen if nothing repeats
    them.
    """
    taken = _whole_documents(tokens, order, wanted, most_tokens)
    if repeats is None or not taken:
        return order
    others = order[~np.isin(order, taken) & (tokens[order] <= most_tokens)]
    spares = _whole_documents(tokens, others, _SPARES * wanted, _SPARES * most_tokens)
    sample = np.sort(np.array([*taken, *spares], np.int64))
    steps = np.zeros(len(tokens), np.int64)
    steps[sample] = np.ceil(_SHARES * repeats(sample) / tokens[sample])
    sampled = np.isin(order, sample)
    first = order[sampled]
    return np.concatenate([first[np.argsort(steps[first], kind="stable")], order[~sampled]])


def _whole_documents(tokens: Int64, order: Int64, wanted: int, most_tokens: int) -> list[int]:
    taken: list[int] = []
    total = 0
    for document in order:
        if len(taken) == wanted:
            break
        if total + tokens[document] <= most_tokens:
            taken.append(int(document))
            total += int(tokens[document])
    return taken
