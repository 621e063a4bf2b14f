"""Check whether an LM made the keys of a file: it reads a few windows of the values, and the keys are compared."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from knnstore.errors import CorpusError, MismatchError, ModelError, UsageError
from knnstore.exchange.keysource import KeySource
from knnstore.wording import option

if TYPE_CHECKING:
    from knnstore.lm.spec import LmFacts, LmSpec

_WINDOWS = 8
# Other toolkits cut the text elsewhere, so windows begin elsewhere; after half a window this has little effect.
_LONGEST_WINDOW = 256
# Measured with wiki-lm on English books: 0.93 to 0.99 for the right layer (windows of 64 and 256 tokens that begin
# elsewhere), 0.77 to 0.87 for its neighbour below, 0.1 for the one above, −0.5 with keys and values shifted by one.
_LEAST_LIKENESS = 0.6


@dataclass(frozen=True, slots=True)
class KeyMatch:
    """The layer that a file's keys are from, and the share of their variance that the LM's own keys explain."""

    layer: str
    likeness: float


def match_keys(source: KeySource, spec: "LmSpec", facts: "LmFacts", key: str | None) -> KeyMatch:
    """Return the layer of an LM that the keys are from; with ``key``, require that layer.

    Raises MismatchError, with the likeness of every layer, if there is none: the keys are from another LM or layer, or
    the values aren't a text in reading order.
    """
    length = min(_LONGEST_WINDOW, facts.longest_context, source.rows)
    if length < 4:
        remedy = f"{option('key')} and {option('check', False)}"
        raise UsageError(f"{source.rows} rows are too few to compare the keys: give {remedy}")
    starts = np.unique(np.linspace(0, source.rows - length, _WINDOWS).astype(np.int64))
    windows = np.stack([source.read_values(int(start), int(start) + length) for start in starts])
    if windows.max() >= facts.identity.vocabulary or windows.min() < 0:
        raise CorpusError(
            f"{source.name}: {windows.min()} to {windows.max()} aren't tokens of {facts.identity.name}, which "
            f"has {facts.identity.vocabulary:,}: check {option('model')}, or {source.remedy}"
        )
    stored = np.concatenate([source.read_keys(int(start) + length // 2, int(start) + length) for start in starts])
    likenesses = {layer: _likeness(stored, keys) for layer, keys in _layers(spec, windows, length // 2)}
    best = max(likenesses, key=lambda layer: likenesses[layer])
    listed = ", ".join(f"{layer} {likeness:.2f}" for layer, likeness in likenesses.items())
    name = facts.identity.name
    if likenesses[best] < _LEAST_LIKENESS:
        raise MismatchError(
            f"{source.name}: these aren't the keys of {name} (likeness to its own: {listed}; at least "
            f"{_LEAST_LIKENESS} is expected). They are from another LM or layer, or the values aren't a text in "
            f"reading order: give the {option('model')} that made them, or skip this check with "
            f"{option('key', 'LAYER')} {option('check', False)}"
        )
    if key not in (None, best):
        raise MismatchError(
            f"{source.name}: these look like the {best} of {name}, not its {key} (likeness: {listed}): "
            f"give {option('key', best)}, or skip this check with {option('check', False)}"
        )
    return KeyMatch(best, round(likenesses[best], 4))


def _layers(spec: "LmSpec", windows: Any, first: int) -> Iterator[tuple[str, Any]]:
    """Yield each layer of the LM with its keys, float32 (n, d), of the tokens of each window from ``first`` on."""
    from knnstore.lm.forward import KeyModel  # noqa: PLC0415 - imports torch
    from knnstore.lm.keylayer import KeyLayer  # noqa: PLC0415
    from knnstore.lm.loading import load_model  # noqa: PLC0415

    for layer in get_args(KeyLayer):
        try:
            model = KeyModel(load_model(spec), layer)
        except ModelError:  # an LM without attention
            continue
        if model.point.layer == layer:  # False for an LM without that layer, which uses its hidden state
            keys = model.keys(windows.astype(np.int64))[:, first - 1 : -1]  # a token's key is the state before it
            yield layer, keys.reshape(-1, keys.shape[-1]).numpy()


def _likeness(stored: Any, made: Any) -> float:
    """Return the median over keys (n, d) of 1 − ‖stored − made‖² / ‖stored − mean‖²: 1 if equal, ≤ 0 by chance."""
    keys = stored.astype(np.float32)
    error, spread = ((keys - made) ** 2).sum(axis=1), ((keys - keys.mean(axis=0)) ** 2).sum(axis=1)
    return float(np.median(1 - error / np.maximum(spread, np.finfo(np.float32).tiny)))
