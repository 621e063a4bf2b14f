"""The mixture of an LM with its memories: ln p of given tokens, and the distribution over all tokens.

p(y|x) = (1 − Σ_s w_s) p_LM(y|x) + Σ_s w_s p_s(y|x): Khandelwal et al. 2020, eq. 3, for several sources s. The weights
are constants or a gate's. Where a source says nothing (no neighbour was found, a document begins, no suffix matches)
its weight is the LM's.

Shapes: n positions, S sources besides the LM, k neighbours, m tokens named by a source, V tokens of the vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from knnstore.arrays import Float32, Float64, Int64
from knnstore.errors import CorruptStoreError
from knnstore.mixing.evidence import Evidence
from knnstore.mixing.features import FEATURES_WITH_MATCHES
from knnstore.mixing.gate import Gate, MemorySource
from knnstore.mixing.interpolation import mix_sources
from knnstore.mixing.setting import Setting
from knnstore.neighbours import ABSENT
from knnstore.wording import command

_EARNERS = {"store": "store", "cache": "cache", "longest": "matches", "frequent": "matches"}


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """What a mixture makes of n tokens.

    ``log_p``: float64 (n,). ``memory_p``: float64 (n,), the probability by all sources but the LM together;
    ``weight``: float64 (n,), theirs in the mixture.
    """

    log_p: Float64
    memory_p: Float64
    weight: Float64


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """Shares in the probability of n tokens; what is left of 1 is the LM's.

    ``store``, ``cache`` and ``matches``: float64 (n,), of the store's neighbours, of the text's own past and of the
    store's exact matches. ``credit``: float64 (n, k), of each neighbour; a row adds up to the store's. ``p``, ``p_lm``
    and ``p_store``: float64 (n,), the tokens' probabilities by mixture, LM and store.
    """

    store: Float64
    cache: Float64
    matches: Float64
    credit: Float64
    p: Float64
    p_lm: Float64
    p_store: Float64


@dataclass(frozen=True, slots=True)
class Mixture:
    """How sources are weighed: by ``gate`` where there is one, else by the constants of ``setting``.

    ``spread``: the typical d_k − d_1 of the store, the unit of a gate's features.
    """

    setting: Setting
    gate: Gate | None = None
    spread: float = 1.0

    @property
    def sources(self) -> tuple[MemorySource, ...]:
        """All that is mixed with the LM."""
        if self.gate is not None:
            return self.gate.sources
        setting = self.setting
        store = MemorySource("store", setting.k, setting.temperature)
        return (store, MemorySource("cache", 0, setting.cache_temperature)) if setting.cache else (store,)

    @property
    def constant(self) -> "Mixture":
        """The same without its gate."""
        return Mixture(self.setting, None, self.spread)

    @property
    def needs_matches(self) -> bool:
        """Whether the store's exact-match memory has to be asked."""
        return self.gate is not None and self.gate.features == FEATURES_WITH_MATCHES

    @property
    def k(self) -> int:
        """Neighbours that it needs."""
        return max((source.k for source in self.sources), default=1)

    def log_p(self, evidence: Evidence, targets: Int64, log_lm: Any) -> Float64:
        """Return ln p of ``targets``, int64 (n,), whose ln p_LM is ``log_lm``, float (n,): float64 (n,)."""
        return self.mixed(evidence, targets, log_lm).log_p

    def mixed(self, evidence: Evidence, targets: Int64, log_lm: Any) -> Mixed:
        """Return ln p of the targets as ``log_p`` does, and what all sources together make of them."""
        p = np.empty((len(targets), len(self.sources)), np.float32)  # (n, S)
        for column, source in enumerate(self.sources):
            p[:, column] = evidence.probability(source, targets, log_lm)
        weights = self.weights(evidence)  # (n, S)
        total = weights.sum(axis=1)  # (n,)
        unweighed = p.mean(axis=1).astype(np.float64)
        memory_p = np.divide((p * weights).sum(axis=1), total, out=unweighed, where=total > 0)
        return Mixed(mix_sources(log_lm, p, weights), memory_p, total)

    def weights(self, evidence: Evidence) -> Float64:
        """Return the weights of the sources: float64 (n, S); what is left of 1 is the LM's."""
        if self.gate is not None:
            return self.gate.weights(evidence.features(self.spread, self.k))[:, 1:].astype(np.float64)
        constants = np.array([self.setting.lambda_, self.setting.cache_weight])[: len(self.sources)]
        return np.tile(constants, (len(evidence), 1))

    def store_votes(self, evidence: Evidence) -> Float64:
        """Return each neighbour's share of the store's vote: float64 (n, k); a row sums to 1, or is all 0."""
        stores = [column for column, source in enumerate(self.sources) if source.kind == "store"]
        shares = self.weights(evidence)[:, stores]  # (n, stores), of the store at each of its temperatures
        total = shares.sum(axis=1, keepdims=True)
        shares = np.divide(shares, total, out=np.full_like(shares, 1 / max(1, len(stores))), where=total > 0)
        votes = np.zeros(evidence.neighbours.values.shape)
        for share, column in zip(shares.T, stores, strict=True):
            p = evidence.distribution(self.sources[column]).p  # (n, the source's k)
            votes[:, : p.shape[1]] += share[:, None] * p
        return votes

    def credit(self, evidence: Evidence, targets: Int64, log_lm: Any) -> Credit:
        """Return the shares of the sources, and of each neighbour, in p of the targets."""
        neighbours, weights = evidence.neighbours, self.weights(evidence)  # weights: (n, S)
        votes = np.where(neighbours.values == targets[:, None], self.store_votes(evidence), 0)  # (n, k)
        p_store = votes.sum(axis=1)  # (n,)
        said = np.where(neighbours.found, p_store, np.nan)
        p = np.empty(weights.shape)  # (n, S), NaN where a source says nothing
        for column, source in enumerate(self.sources):
            p[:, column] = said if source.kind == "store" else evidence.target_p(source, targets)
        p_lm = np.exp(np.asarray(log_lm, np.float64))  # (n,)
        p_mixture = np.exp(mix_sources(log_lm, np.where(np.isnan(p), p_lm[:, None], p), weights))  # (n,)
        whole = np.maximum(p_mixture, np.finfo(np.float64).tiny)[:, None]  # (n, 1)
        earned = np.nan_to_num(weights * p) / whole  # (n, S)
        kinds = np.array([_EARNERS[source.kind] for source in self.sources])
        credit = weights[:, kinds == "store"].sum(axis=1)[:, None] * votes / whole  # (n, k)
        cache, matches = (earned[:, kinds == kind].sum(axis=1) for kind in ("cache", "matches"))
        return Credit(credit.sum(axis=1), cache, matches, credit, p_mixture, p_lm, p_store)

    def distribution(self, evidence: Evidence, logits: torch.Tensor) -> torch.Tensor:
        """Return ln p of every token plus the offset of the LM's logits: float32 (n, V), on their device.

        The offset is their logsumexp, a constant for each position: at a weight of 0 the result is ``logits``, float32
        (n, V), bit for bit. Raises CorruptStoreError for a token that the LM doesn't have.
        """
        weights = self.weights(evidence)  # (n, S)
        named, parts = [], []
        for column, source in enumerate(self.sources):
            distribution = evidence.distribution(source)
            weights[:, column] *= distribution.says
            named.append(distribution.tokens)
            parts.append(weights[:, column, None].astype(np.float32) * distribution.p)
        tokens, p_named = np.concatenate(named, axis=1), np.concatenate(parts, axis=1)  # (n, m) of all sources
        largest = int(tokens.max(initial=ABSENT))
        if largest >= logits.shape[1]:
            raise CorruptStoreError(
                f"the store holds token {largest}, the LM has {logits.shape[1]}: run {command('verify')}"
            )
        memory = torch.zeros_like(logits, requires_grad=False)  # (n, V): Σ_s w_s p_s
        memory.scatter_add_(1, _on(tokens, logits).clamp(min=0), _on(p_named, logits))
        lm_weight = _on(weights.sum(axis=1, dtype=np.float32)[:, None], logits)  # (n, 1)
        offset = logits.logsumexp(dim=-1, keepdim=True)  # (n, 1)
        return torch.logaddexp(memory.log() + offset, logits + torch.log1p(-lm_weight))


def _on(array: Float32 | Int64, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)
