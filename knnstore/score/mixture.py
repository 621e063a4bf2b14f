"""A mixture of an LM with a store, and what it makes of scored tokens: with constant weights, or a gate's."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from knnstore.evidence import (
    LM_FEATURES,
    MATCH_FEATURES,
    STORE_FEATURES,
    Outlook,
    lm_features,
    match_features,
    store_features,
)
from knnstore.gating import Gate, Source
from knnstore.interpolation import mix, mix_sources
from knnstore.neighbours import Float32, target_probabilities
from knnstore.score.passes import Block
from knnstore.score.result import Setting

FEATURES = (*LM_FEATURES, *STORE_FEATURES)
FEATURES_WITH_MATCHES = (*FEATURES, *MATCH_FEATURES)


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """What a mixture makes of n tokens.

    ``log_p``: float64 (n,). ``memory_p``: float64 (n,), the probability by all but the LM, store and cache together;
    ``weight``: float64 (n,), theirs in the mixture.
    """

    log_p: Any
    memory_p: Any
    weight: Any


@dataclass(frozen=True, slots=True)
class Mixture:
    """How sources are weighed: by ``gate`` where there is one, else by the constants of ``setting``.

    ``spread``: the typical d_k − d_1 of the store, the unit of a gate's features.
    """

    setting: Setting
    gate: Gate | None = None
    spread: float = 1.0

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that is mixed with the LM."""
        if self.gate is not None:
            return self.gate.sources
        setting = self.setting
        store = Source("store", setting.k, setting.temperature)
        return (store, Source("cache", 0, setting.cache_temperature)) if setting.cache else (store,)

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

    def apply(self, block: Block) -> Mixed:
        """The mixture's probabilities of a block's tokens."""
        probabilities = source_probabilities(block, self.sources)  # (n, sources)
        if self.gate is not None:
            weights = self.gate.weights(features(block, self.spread))[:, 1:].astype(np.float64)
        else:
            weights = np.array([[self.setting.lambda_, self.setting.cache_weight][: len(self.sources)]])
            weights = np.repeat(weights, len(probabilities), axis=0)
        if weights.shape[1] == 1 and self.gate is None:
            log_p = mix(block.tokens.log_p, probabilities[:, 0], self.setting.lambda_)
        else:
            log_p = mix_sources(block.tokens.log_p, probabilities, weights)
        weight = weights.sum(axis=1)
        memory = (probabilities * weights).sum(axis=1)
        plain = probabilities.mean(axis=1)
        return Mixed(log_p, np.divide(memory, weight, out=plain.astype(np.float64), where=weight > 0), weight)


def features(block: Block, spread: float) -> Float32:
    """float32 (n, features): all that is known of a block's tokens before they are, FEATURES or those with matches."""
    outlook = Outlook(block.tokens.entropy, block.tokens.leading, block.tokens.leading_log_p)
    parts = [lm_features(outlook), store_features(outlook, block.neighbours, spread)]
    parts += [match_features(match.length, match.count, match.followers) for match in block.matches or ()]
    return np.concatenate(parts, axis=1)


def source_probabilities(block: Block, sources: tuple[Source, ...]) -> Float32:
    """p of each token by each source, float32 (n, sources); the LM's own where a source has nothing to say."""
    columns = np.empty((len(block.tokens.log_p), len(sources)), np.float32)
    ks = tuple(sorted({source.k for source in sources if source.kind == "store"}))
    temperatures = tuple(dict.fromkeys(source.temperature for source in sources if source.kind == "store"))
    knn = store_probabilities(block, ks, temperatures) if ks else None
    for column, source in enumerate(sources):
        if source.kind == "store":
            assert knn is not None
            columns[:, column] = knn[:, ks.index(source.k), temperatures.index(source.temperature)]
        elif source.kind == "cache":
            columns[:, column] = cache_probabilities_of(block)[:, block.cache_temperatures.index(source.temperature)]
        else:
            columns[:, column] = match_probabilities(block)[:, int(source.kind == "frequent")]
    return columns


def store_probabilities(block: Block, ks: tuple[int, ...], temperatures: tuple[float, ...]) -> Float32:
    """p_kNN of a block's tokens, float32 (n, ks, temperatures); the LM's own where nothing was found."""
    knn = target_probabilities(block.neighbours, block.tokens.targets, ks, temperatures)
    missing = ~block.neighbours.found
    knn[missing] = np.exp(block.tokens.log_p[missing])[:, None, None]
    return knn


def cache_probabilities_of(block: Block) -> Float32:
    """p_cache of a block's tokens, float32 (n, temperatures); the LM's own at a document's beginning."""
    assert block.cache is not None
    lm = np.exp(block.tokens.log_p)[:, None]
    return np.asarray(np.where(np.isnan(block.cache), lm, block.cache), np.float32)


def match_probabilities(block: Block) -> Float32:
    """p by the longest and by the longest frequent match, float32 (n, 2); the LM's own where nothing matches."""
    assert block.matches is not None
    found = np.stack([match.probability(block.tokens.targets) for match in block.matches], axis=1)
    return np.asarray(np.where(np.isnan(found), np.exp(block.tokens.log_p)[:, None], found), np.float32)
