"""What LM and store say of every token of a text, kept so that another λ, temperature or k costs no search."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.attachment import Search
from knnstore.datastore.manifest import KeyRecipe
from knnstore.lm.forward import KeyModel, padded_ids, scored_positions
from knnstore.mixing.evidence import Evidence
from knnstore.mixing.interpolation import Float64
from knnstore.mixing.mixture import Mixture
from knnstore.mixing.setting import Setting
from knnstore.neighbours import ABSENT, Float32, Int64, Neighbours
from knnstore.windows import cut_windows

_TOP = 24  # of the LM's own choices, kept a token
_BATCH_TOKENS = 1024
_LOGITS = 2**26  # most numbers in a batch's logits: 256 MB in float32


@dataclass(frozen=True, slots=True, eq=False)
class TokenChoice:
    """A token that LM, store or mixture might have chosen, and what each gives it."""

    token: int
    lm: float
    store: float
    mixture: float


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A text under one setting: ln p of each token, by the LM and by the mixture, float64 (n,)."""

    log_lm: Float64
    log_p: Float64

    @property
    def lm_perplexity(self) -> float:
        """Of the LM alone."""
        return float(np.exp(-self.log_lm.mean()))

    @property
    def perplexity(self) -> float:
        """Of the mixture."""
        return float(np.exp(-self.log_p.mean()))


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """A text of n tokens, read once.

    ``pieces``: the text of each token, together the whole text. ``ids``: int64 (n,). ``log_lm``: float64 (n,).
    ``top`` and ``top_log_lm``: the LM's first choices, (n, 24). ``neighbours``: of the k nearest keys, with rows.
    ``neighbour_log_lm``: what the LM gives each neighbour's token, ln p, float32 (n, k).
    """

    pieces: tuple[str, ...]
    ids: Int64
    log_lm: Float64
    top: Int64
    top_log_lm: Any
    neighbours: Neighbours
    neighbour_log_lm: Any

    def scored(self, setting: Setting) -> Scored:
        """Return every token's probability under a setting. A token whose search found nothing keeps the LM's."""
        log_p = Mixture(setting).log_p(Evidence(self.neighbours), self.ids, self.log_lm)
        return Scored(self.log_lm, log_p)

    def weights(self, token: int, setting: Setting) -> Float32:
        """Return softmax(−d / T) of a token's k nearest neighbours: float32 (k,), 0 where fewer were found."""
        (store, *_) = Mixture(setting).sources
        weights: Float32 = self._evidence(token).distribution(store).p[0]
        return weights

    def _evidence(self, token: int, times: int = 1) -> Evidence:
        """Return what is known of one token, repeated."""
        return Evidence(self.neighbours.select(np.full(times, token)))

    def choices(self, token: int, setting: Setting, most: int) -> list[TokenChoice]:
        """Return the first choices of LM, store and mixture at a token, and the token itself, by the mixture."""
        values = self.neighbours.values[token, : setting.k]
        lm = dict(zip(self.top[token].tolist(), self.top_log_lm[token].tolist(), strict=True))
        store: dict[int, float] = {}
        for value, weight, log_lm in zip(
            values.tolist(), self.weights(token, setting).tolist(), self.neighbour_log_lm[token], strict=False
        ):
            if value != ABSENT:
                store[value] = store.get(value, 0.0) + weight
                lm.setdefault(value, float(log_lm))
        target = int(self.ids[token])
        lm.setdefault(target, float(self.log_lm[token]))
        tokens, log_lms = np.array(list(lm)), np.array(list(lm.values()))
        p = np.exp(Mixture(setting).log_p(self._evidence(token, len(tokens)), tokens, log_lms)).tolist()
        every = [
            TokenChoice(each, float(np.exp(log_lm)), store.get(each, 0.0), mixture)
            for (each, log_lm), mixture in zip(lm.items(), p, strict=True)
        ]
        kept: dict[int, TokenChoice] = {choice.token: choice for choice in every if choice.token == target}
        for rank in range(most):
            for by in ("mixture", "store", "lm"):
                ranked = sorted(every, key=lambda choice: (-getattr(choice, by), choice.token))
                if rank < len(ranked) and len(kept) < most and getattr(ranked[rank], by) > 0:
                    kept.setdefault(ranked[rank].token, ranked[rank])
        return sorted(kept.values(), key=lambda choice: -choice.mixture)


def analyse(model: KeyModel, recipe: KeyRecipe, search: Search, text: str, *, k: int, most_tokens: int) -> Analysis:
    """Read the first ``most_tokens`` of a text once with the LM and find every token's k nearest neighbours."""
    ids = model.loaded.tokenise(text)[:most_tokens]
    pieces = _pieces(model, text, ids)
    windows = cut_windows(np.zeros(1, np.int64), np.array([len(ids)]), context=recipe.context, stride=recipe.stride)
    vocabulary = model.loaded.identity.vocabulary
    parts = []
    padding = model.padding(windows.context)
    for batch in windows.batches(max(1, min(_BATCH_TOKENS, _LOGITS // vocabulary)), padding):
        rows, lines, positions = scored_positions(batch)
        first = int((batch.length - batch.scored).min())
        inputs = padded_ids(batch, lambda _, begin, end: ids[begin:end], model.loaded.bos, padding)
        keys, logits = model.keys_and_logits(inputs, first)
        log_p = logits[lines, positions - first].float().log_softmax(dim=-1).cpu()  # (tokens, vocabulary)
        found = search(keys[lines, positions - first].numpy(), k)
        top = log_p.topk(min(_TOP, log_p.shape[-1]), dim=-1)
        table = log_p.numpy()
        line = np.arange(len(rows))
        parts.append(
            (
                rows,
                table[line, ids[rows]].astype(np.float64),
                top.indices.numpy(),
                top.values.numpy(),
                found.distances,
                found.values,
                found.rows,
                np.take_along_axis(table, np.maximum(found.values, 0), axis=1),
            )
        )
    rows, log_lm, top_ids, top_log_p, distances, values, found_rows, value_log_p = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    order = np.argsort(rows)
    neighbours = Neighbours(distances[order], values[order], found_rows[order])
    return Analysis(pieces, ids, log_lm[order], top_ids[order], top_log_p[order], neighbours, value_log_p[order])


def _pieces(model: KeyModel, text: str, ids: Int64) -> tuple[str, ...]:
    """The text of each token, as it stands in the text; a token within a character gives none of it."""
    tokenizer = model.loaded.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        return tuple(model.loaded.decode([int(token)]) for token in ids)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    ends = np.maximum.accumulate([end for _, end in spans[: len(ids)]]).tolist()
    return tuple(text[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True))
