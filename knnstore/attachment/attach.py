"""Join an LM that is in memory to a store, for as long as wanted."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TypeVar

import numpy as np

from knnstore.attachment.defaults import default_setting
from knnstore.attachment.search import Search
from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError
from knnstore.lm.forward import KeyModel
from knnstore.lm.hooks import MixtureHooks, Step
from knnstore.lm.matching import require_same_keys
from knnstore.score.result import Setting

T = TypeVar("T")

# Enough keys to tell how far they lie apart.
_SAMPLE_ROWS = 1024


class Attachment:
    """An LM joined to a store: until ``detach``, or the end of its ``with``, the LM's logits are the mixture's ln p.

    ``setting``: its k, λ and temperature, and ``source`` where they come from, in words. ``nprobe``: lists that a
    query searches, None if it searches every key.
    """

    def __init__(self, hooks: MixtureHooks, setting: Setting, source: str, nprobe: int | None) -> None:
        self._hooks = hooks
        self.setting = setting
        self.source = source
        self.nprobe = nprobe

    def detach(self) -> None:
        """Leave the LM as it was. Harmless if that has been done."""
        self._hooks.detach()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        setting = self.setting
        return f"Attachment(k={setting.k}, lambda_={setting.lambda_:g}, temperature={setting.temperature:g})"


def attach_store(
    model: KeyModel,
    store: Datastore,
    search: Search,
    *,
    k: int | None = None,
    lambda_: float | None = None,
    temperature: float | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Attachment:
    """Join ``model`` to ``store``; what is None is what the store was tuned to, else a cautious default.

    Raises MismatchError if the LM doesn't make the store's keys, UsageError for a setting that is none.
    """
    require_store_of(store, model)
    setting, source = Setting(_or(k, 1), _or(lambda_, 0.0), _or(temperature, 1.0)), "as given"
    require_setting(setting)
    if None in (k, lambda_, temperature):
        default, source = default_setting(store, search, k)
        setting = replace(
            default,
            lambda_=_or(lambda_, default.lambda_),
            temperature=_or(temperature, default.temperature),
        )
    setting = replace(setting, k=min(setting.k, store.rows))
    hooks = MixtureHooks(
        model.loaded.model,
        model.point,
        partial(search, k=setting.k),
        lambda_=setting.lambda_,
        temperature=setting.temperature,
        on_step=on_step,
    )
    return Attachment(hooks, setting, source, search.nprobe)


def require_store_of(store: Datastore, model: KeyModel) -> None:
    """Raise MismatchError unless ``model`` makes the keys that the store holds of a window of its text."""
    segment = store.segments[0]
    document = int(np.argmax(segment.documents.tokens))
    first = int(segment.documents.first_row[document])
    count = int(min(segment.documents.tokens[document], store.manifest.key.stride))
    ids = np.concatenate([[model.loaded.bos], segment.values(first, first + count - 1)]).astype(np.int64)
    stored = segment.codec.decode(segment.keys(first, first + count))
    sample = segment.codec.decode(segment.keys(0, min(segment.rows, _SAMPLE_ROWS)))
    spread = np.square(sample - sample.mean(axis=0)).sum(axis=1).mean() if len(sample) > 1 else np.square(sample).sum()
    require_same_keys(store.root, store.manifest, model, ids=ids, stored=stored, spread=float(spread))


def require_setting(setting: Setting) -> None:
    """Raise UsageError for a setting that is no mixture."""
    k, weight, temperature = setting.k, setting.lambda_, setting.temperature
    if not 1 <= k <= 2**16:
        raise UsageError(f"k is {k}: give a number of neighbours from 1 to {2**16}")
    if not 0 <= weight < 1:
        raise UsageError(f"lambda_ is {weight:g}: the store's weight is at least 0 and below 1")
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature is {temperature:g}: give a finite number above 0")


def _or(given: T | None, default: T) -> T:
    return default if given is None else given
