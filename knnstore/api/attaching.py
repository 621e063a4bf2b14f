"""``knnstore.attach``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from knnstore.api.store import Store, open, warn_of_mismatch
from knnstore.attachment.attach import Attachment, adopted_model, attach_store
from knnstore.attachment.defaults import choose_mixture
from knnstore.attachment.mixer import MixedStep


def attach(
    model: Any,
    store: Store | str | Path,
    *,
    lambda_: float | None = None,
    temperature: float | None = None,
    k: int | None = None,
    nprobe: int | None = None,
    exact: bool = False,
    allow_mismatch: bool = False,
    on_step: Callable[[MixedStep], None] | None = None,
) -> Attachment:
    """Attach a store to an LM of transformers, causal or encoder-decoder, until ``detach()`` or the end of a ``with``.

    While attached, ``model(...).logits``, ``model.generate(...)`` and pipelines with ``model`` use the mixture: the
    logits, float32, are ln p plus the offset of the LM's own logits, a constant per position, and their
    ``log_softmax`` is ln p; a loss is that of the mixture. At padding positions they are the LM's. Only this
    instance is changed, by hooks that ``detach`` removes completely. A second store is mixed with the result of the
    first.

    Args:
        model: an LM in evaluation mode, on any device and in any dtype, or wrapped by ``torch.compile``, DataParallel,
            DistributedDataParallel or adapters of PEFT. Other wrappers are refused, with the name of the LM inside.
        store: a store, or the name, path or URL of one.
        lambda_, temperature, k: the mixture; None for the tuned value of the store, else a cautious default.
        nprobe: lists searched per query. exact: search every key instead.
        allow_mismatch: only warn if the LM's keys differ from those of the store.
        on_step: called after each forward pass with the neighbours and distributions of its positions.

    Raises MismatchError if the LM doesn't reproduce the store's keys, ModelError if it isn't an LM or is in training
    mode, and UnfinishedError without an index.
    """
    opened = store if isinstance(store, Store) else open(store)
    keyed = adopted_model(opened.datastore, model, allow=warn_of_mismatch if allow_mismatch else None)
    search = opened.searching(nprobe=nprobe, exact=exact)
    mixed_by = choose_mixture(opened.datastore, search, k=k, lambda_=lambda_, temperature=temperature)
    return attach_store(keyed, search, mixed_by, on_step=on_step)
