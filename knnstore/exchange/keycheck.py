"""Whether an LM made the keys of a file: it reads a few windows of the values again, and the keys are compared."""

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
# Other toolkits cut the text elsewhere, so the LM sees another beginning; it knows little of that after half a window.
_LONGEST_WINDOW = 256
# Measured with wiki-lm on English books: 0.93 to 0.99 for the right layer (windows of 64 and 256 tokens that begin
# elsewhere), 0.77 to 0.87 for its neighbour below, 0.1 for the one above, −0.5 with keys and values shifted by one.
_LEAST_LIKENESS = 0.6


@dataclass(frozen=True, slots=True)
class KeyMatch:
    """The layer that a file's keys were taken from, and the share of their variance that the LM's own keys explain."""

    layer: str
    likeness: float


def match_keys(source: KeySource, spec: "LmSpec", facts: "LmFacts", key: str | None) -> KeyMatch:
    """Which layer of an LM the keys are; with ``key``, that it is that one.

    Raises MismatchError, with every layer's likeness, if none: the keys are another LM's, or of another layer, or the
    values aren't a text in reading order.
    """
    length = min(_LONGEST_WINDOW, facts.longest_context, source.rows)
    if length < 4:
        word = f"{option('key')} and {option('check', False)}"
        raise UsageError(f"{source.rows} rows are too few to check whose keys they are: give {word}")
    starts = np.unique(np.linspace(0, source.rows - length, _WINDOWS).astype(np.int64))
    windows = np.stack([source.read_values(int(start), int(start) + length) for start in starts])
    if windows.max() >= facts.identity.vocabulary or windows.min() < 0:
        raise CorpusError(
            f"{source.name}: {windows.min()} to {windows.max()} aren't tokens of {facts.identity.name}, which "
            f"has {facts.identity.vocabulary:,}: check {option('model')}, or {source.remedy}"
        )
    stored = np.concatenate([source.read_keys(int(start) + length // 2, int(start) + length) for start in starts])
    found = {layer: _likeness(stored, keys) for layer, keys in _layers(spec, windows, length // 2)}
    best = max(found, key=lambda layer: found[layer])
    told = ", ".join(f"{layer} {likeness:.2f}" for layer, likeness in found.items())
    name = facts.identity.name
    if found[best] < _LEAST_LIKENESS:
        raise MismatchError(
            f"{source.name}: these aren't the keys of {name} (likeness to its own: {told}; at least "
            f"{_LEAST_LIKENESS} is expected). They are another LM's or another layer's, or the values are no text in "
            f"reading order: give the {option('model')} that made them, or your word with {option('key', 'LAYER')} "
            f"{option('check', False)}"
        )
    if key not in (None, best):
        raise MismatchError(
            f"{source.name}: these look like the {best} of {name}, not its {key} (likeness: {told}): "
            f"give {option('key', best)}, or your word with {option('check', False)}"
        )
    return KeyMatch(best, round(found[best], 4))


def _layers(spec: "LmSpec", windows: Any, first: int) -> Iterator[tuple[str, Any]]:
    """Each layer that the LM has, and its keys of the tokens ``first …`` of each window: float32 (n, d)."""
    from knnstore.lm.forward import KeyModel  # noqa: PLC0415 - imports torch
    from knnstore.lm.keylayer import KeyLayer  # noqa: PLC0415
    from knnstore.lm.loading import load_model  # noqa: PLC0415

    for layer in get_args(KeyLayer):
        try:
            model = KeyModel(load_model(spec), layer)
        except ModelError:  # an LM without attention
            continue
        if model.point.layer == layer:  # one without a feed-forward part gives its hidden state for it
            keys = model.keys(windows.astype(np.int64))[:, first - 1 : -1]  # a token's key is made before it is read
            yield layer, keys.reshape(-1, keys.shape[-1]).numpy()


def _likeness(stored: Any, made: Any) -> float:
    """1 − ‖stored − made‖² / ‖stored − mean‖², the median over keys (n, d): 1 for equal keys, 0 for chance or less."""
    keys = stored.astype(np.float32)
    error, spread = ((keys - made) ** 2).sum(axis=1), ((keys - keys.mean(axis=0)) ** 2).sum(axis=1)
    return float(np.median(1 - error / np.maximum(spread, np.finfo(np.float32).tiny)))
