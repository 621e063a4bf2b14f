"""``knnstore.attach``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from knnstore.api.store import Store, open, warn_of_mismatch
from knnstore.attachment import Attachment, adopted_model, attach_store, choose_mixture
from knnstore.attachment.mixer import Step


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
    on_step: Callable[[Step], None] | None = None,
) -> Attachment:
    """Join an LM of transformers, causal or encoder-decoder, to a store, until ``detach()`` or the end of a ``with``.

    Meanwhile ``model(...).logits``, ``model.generate(...)`` and pipelines with ``model`` give the mixture: the logits,
    float32, are ln p plus the offset of the LM's own logits, a constant for each position, and ``log_softmax`` of them
    is ln p; a loss is the mixture's. At positions of padding they are the LM's. Only this instance is touched, by
    hooks, and ``detach`` leaves no trace. A second store is mixed with what the first made.

    Args:
        model: in evaluation mode, on any device, in any dtype; or the LM wrapped by ``torch.compile``, DataParallel,
            DistributedDataParallel or adapters of PEFT. Other wrappers are refused, naming the LM inside.
        store: a store, or what ``--store`` takes.
        lambda_, temperature, k: the mixture; what is None is as the store was tuned, else a cautious default.
        nprobe: lists that a query searches. exact: search every key instead.
        allow_mismatch: warn of an LM that makes other keys than the store holds, and join it all the same.
        on_step: called after each forward pass with the neighbours and distributions of its positions.

    Raises MismatchError if this LM doesn't make the store's keys, ModelError if it is none or is being trained,
    UnfinishedError without an index.
    """
    opened = store if isinstance(store, Store) else open(store)
    keyed = adopted_model(opened.datastore, model, allow=warn_of_mismatch if allow_mismatch else None)
    search = opened.searching(nprobe=nprobe, exact=exact)
    mixed_by = choose_mixture(opened.datastore, search, k=k, lambda_=lambda_, temperature=temperature)
    return attach_store(keyed, search, mixed_by, on_step=on_step)
