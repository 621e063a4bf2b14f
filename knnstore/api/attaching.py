"""``knnstore.attach``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from knnstore.api.store import Store, open
from knnstore.attachment import Attachment, adopted_model, attach_store, choose_setting
from knnstore.lm.hooks import Step


def attach(
    model: Any,
    store: Store | str | Path,
    *,
    lambda_: float | None = None,
    temperature: float | None = None,
    k: int | None = None,
    nprobe: int | None = None,
    exact: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Attachment:
    """Join an LM of transformers, causal or encoder-decoder, to a store, until ``detach()`` or the end of a ``with``.

    Meanwhile ``model(...).logits``, ``model.generate(...)`` and pipelines with ``model`` speak for the mixture: the
    logits are ln p, float32, of every position that is returned and isn't padding; a loss is the mixture's. Only this
    instance is touched, by hooks, and ``detach`` leaves no trace. A second store is mixed with what the first made.

    Args:
        model: in evaluation mode, on any device, in any dtype.
        store: a store, or what ``--store`` takes.
        lambda_, temperature, k: the mixture; what is None is as the store was tuned, else a cautious default.
        nprobe: lists that a query searches. exact: search every key instead.
        on_step: called after each forward pass with the neighbours and distributions of its positions.

    Raises MismatchError if this LM doesn't make the store's keys, ModelError if it is none or is being trained,
    UnfinishedError without an index.
    """
    opened = store if isinstance(store, Store) else open(store)
    keyed = adopted_model(opened.datastore, model)
    search = opened.searching(nprobe=nprobe, exact=exact)
    setting = choose_setting(opened.datastore, search, k=k, lambda_=lambda_, temperature=temperature)
    return attach_store(keyed, search, *setting, on_step=on_step)
