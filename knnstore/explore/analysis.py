"""The predictions of LM and store for every token of a text, kept so that other settings need no new search."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.arrays import Float64, Int64
from knnstore.attachment.search import Search
from knnstore.datastore.manifest import KeyRecipe
from knnstore.lm.forward import KeyModel, padded_ids, scored_positions
from knnstore.lm.scoring import expectations
from knnstore.mixing.cache import cache_neighbours
from knnstore.mixing.evidence import Evidence
from knnstore.mixing.features import Outlook
from knnstore.mixing.mixture import Mixture
from knnstore.neighbours import ABSENT, Neighbours
from knnstore.passages import Passage
from knnstore.scoring.columns import Columns
from knnstore.scoring.passes import find_matches
from knnstore.suffix_array.search import Suffixes
from knnstore.windows import cut_windows

_TOP = 24  # most probable tokens of the LM kept per position
_BATCH_TOKENS = 1024
_LOGITS = 2**26  # maximum number of logits per batch: 256 MB in float32


@dataclass(frozen=True, slots=True)
class WeighedNeighbour:
    """A neighbour of a token: its share of the store's probability, its distance and its passage."""

    weight: float
    distance: float
    passage: Passage


@dataclass(frozen=True, slots=True, eq=False)
class TokenChoice:
    """A candidate token with its probability by the LM, the store and the mixture."""

    token: int
    lm: float
    store: float
    mixture: float


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A text under one setting: ln p of each token by the LM and by the mixture, float64 (n,)."""

    log_lm: Float64
    log_p: Float64

    @property
    def lm_perplexity(self) -> float:
        """Return the perplexity of the LM alone."""
        return float(np.exp(-self.log_lm.mean()))

    @property
    def perplexity(self) -> float:
        """Return the perplexity of the mixture."""
        return float(np.exp(-self.log_p.mean()))


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """A text of n tokens, read once.

    ``pieces``: the text of each token, together the whole text. ``ids``: int64 (n,). ``log_lm``: float64 (n,).
    ``top`` and ``top_log_lm``: the LM's most probable tokens, (n, 24). ``evidence``: the input of mixtures, including
    the k nearest keys with their rows. ``neighbour_log_lm``: ln p of each neighbour's token by the LM, float32 (n, k).
    """

    pieces: tuple[str, ...]
    ids: Int64
    log_lm: Float64
    top: Int64
    top_log_lm: Any
    evidence: Evidence
    neighbour_log_lm: Any

    @property
    def neighbours(self) -> Neighbours:
        """Return the k nearest keys of each token."""
        return self.evidence.neighbours

    def scored(self, mixture: Mixture) -> Scored:
        """Return every token's probability by a mixture. Without neighbours, a token keeps the LM's probability."""
        return Scored(self.log_lm, mixture.log_p(self.evidence, self.ids, self.log_lm))

    def votes(self, token: int, mixture: Mixture) -> Float64:
        """Return each neighbour's share of the store's probability at a token: float64 (k,), 0 without a neighbour."""
        votes: Float64 = mixture.store_votes(self.evidence.select(np.array([token])))[0]
        return votes

    def choices(self, token: int, mixture: Mixture, most: int) -> list[TokenChoice]:
        """Return the token itself and the most probable tokens of LM, store and mixture, sorted by the mixture."""
        lm = dict(zip(self.top[token].tolist(), self.top_log_lm[token].tolist(), strict=True))
        store: dict[int, float] = {}
        columns = (self.neighbours.values[token], self.votes(token, mixture), self.neighbour_log_lm[token])
        for value, vote, log_lm in zip(*(column.tolist() for column in columns), strict=True):
            if value != ABSENT:
                store[value] = store.get(value, 0.0) + vote
                lm.setdefault(value, log_lm)
        target = int(self.ids[token])
        lm.setdefault(target, float(self.log_lm[token]))
        tokens, log_lms = np.array(list(lm)), np.array(list(lm.values()))
        repeated = self.evidence.select(np.full(len(tokens), token))
        p = np.exp(mixture.log_p(repeated, tokens, log_lms)).tolist()
        every = [
            TokenChoice(candidate, float(np.exp(log_lm)), store.get(candidate, 0.0), mixture)
            for (candidate, log_lm), mixture in zip(lm.items(), p, strict=True)
        ]
        kept: dict[int, TokenChoice] = {choice.token: choice for choice in every if choice.token == target}
        for rank in range(most):
            for by in ("mixture", "store", "lm"):
                ranked = sorted(every, key=lambda choice: (-getattr(choice, by), choice.token))
                if rank < len(ranked) and len(kept) < most and getattr(ranked[rank], by) > 0:
                    kept.setdefault(ranked[rank].token, ranked[rank])
        return sorted(kept.values(), key=lambda choice: -choice.mixture)


def analyse(
    model: KeyModel,
    recipe: KeyRecipe,
    search: Search,
    text: str,
    *,
    k: int,
    most_tokens: int,
    cache: int = 0,
    suffixes: Suffixes | None = None,
) -> Analysis:
    """Read the first ``most_tokens`` of a text with the LM, and collect the evidence for mixtures.

    ``k``: number of neighbours. ``cache``: number of pairs of the text's own past. ``suffixes``: exact-match memory.
    """
    ids = model.loaded.tokenise(text)[:most_tokens]
    pieces, first, places = _pieces(model, text, ids), np.zeros(len(ids), np.int64), np.arange(len(ids))
    windows = cut_windows(np.zeros(1, np.int64), np.array([len(ids)]), context=recipe.context, stride=recipe.stride)
    columns, padding = Columns(), model.padding(windows.context)
    for batch in windows.batches(max(1, min(_BATCH_TOKENS, _LOGITS // model.loaded.identity.vocabulary)), padding):
        rows, lines, positions = scored_positions(batch)
        begin = int((batch.length - batch.scored).min())
        inputs = padded_ids(batch, lambda _, begin, end: ids[begin:end], model.loaded.bos, padding)
        keys, logits = model.keys_and_logits(inputs, begin)
        queries = keys[lines, positions - begin].numpy()
        log_p = logits[lines, positions - begin].float().log_softmax(dim=-1).cpu()  # (tokens, vocabulary)
        top, table, near = log_p.topk(min(_TOP, log_p.shape[-1]), dim=-1), log_p.numpy(), search(queries, k)
        leading, leading_log_p, entropy = (part.numpy() for part in expectations(log_p))
        assert near.rows is not None
        columns.append(row=rows, key=queries, leading=leading, leading_log_p=leading_log_p, entropy=entropy)
        columns.append(distances=near.distances, values=near.values, near_rows=near.rows)
        columns.append(
            log_lm=table[np.arange(len(rows)), ids[rows]].astype(np.float64),
            top=top.indices.numpy(),
            top_log_lm=top.values.numpy(),
            neighbour_log_lm=np.take_along_axis(table, np.maximum(near.values, 0), axis=1),
        )
    order = np.argsort(columns["row"])
    ordered = {name: columns[name][order] for name in columns.parts}
    evidence = Evidence(
        Neighbours(ordered["distances"], ordered["values"], ordered["near_rows"]),
        Outlook(ordered["entropy"], ordered["leading"], ordered["leading_log_p"]),
        matches=find_matches(suffixes, ids, first, places),
        pairs=cache_neighbours(ordered["key"], ids, first, places, cache) if cache else None,
    )
    of_lm = (ordered["log_lm"], ordered["top"], ordered["top_log_lm"])
    return Analysis(pieces, ids, *of_lm, evidence, ordered["neighbour_log_lm"])


def _pieces(model: KeyModel, text: str, ids: Int64) -> tuple[str, ...]:
    """Return the text of each token; empty for a token inside a character."""
    tokenizer = model.loaded.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        return tuple(model.loaded.decode([int(token)]) for token in ids)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    ends = np.maximum.accumulate([end for _, end in spans[: len(ids)]]).tolist()
    return tuple(text[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True))
