"""Checks that an LM fits a store; ``knnstore.recognition`` decides whether it made the store."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.datastore.manifest import Manifest
from knnstore.errors import MismatchError
from knnstore.lm.forward import KeyModel
from knnstore.lm.loading import KINDS
from knnstore.lm.sources import SourceBatch
from knnstore.wording import command, option

Allow = Callable[[str], None]
"""Called with the message about an allowed difference."""

# Maximum squared error of a key as a share of the keys' variance. The same LM differs from itself (int8 keys, bfloat16,
# other kernels) by less than a hundredth; another LM's keys are as far away as any two keys: about 2.
LARGEST_ERROR = 0.05


def require_known_model(root: Path, manifest: Manifest) -> None:
    """Raise MismatchError if the LM that made the store is unknown, as after an import of keys only."""
    if not manifest.model.weights:
        raise MismatchError(
            f"{root} was imported without the LM that made its keys: run {command('import')} again with "
            f"{option('model')}, which compares the keys"
        )


def require_same_task(root: Path, manifest: Manifest, name: str, task: str) -> None:
    """Raise MismatchError unless a model of this task is of the kind that made the store."""
    if task != manifest.key.task:
        pairs = {"task": "seq2seq", "source": "FILE", "target": "FILE"}
        ingest = command("ingest", **(pairs if task == "seq2seq" else {"corpus": "PATH"}), model=name)
        raise MismatchError(
            f"{root} was made by {KINDS[manifest.key.task]}, {manifest.model.name!r}, and {name!r} is {KINDS[task]}: "
            f"give the model that made the store, or make a store for this model with {ingest}"
        )


def require_same_layer(root: Path, manifest: Manifest, model: KeyModel, allow: Allow | None = None) -> None:
    """Raise MismatchError, or call ``allow``, unless the keys of ``model`` are from the store's key layer."""
    if model.point.layer != manifest.key.layer:
        message = f"{root} holds keys of {manifest.key.layer}, not {model.point.layer}"
        if allow is None:
            allowed = option("allow_mismatch", True)
            raise MismatchError(f"{message}: give the model that made the store, or {allowed} to accept this")
        allow(message)


def require_fitting(root: Path, manifest: Manifest, model: KeyModel) -> None:
    """Raise MismatchError if the model can't be used with the store's keys and values at all."""
    dimension = model.dimension
    if dimension != manifest.key.dimension:
        raise MismatchError(
            f"{root} holds keys of {manifest.key.dimension} dimensions, {model.loaded.identity.name!r} makes keys of "
            f"{dimension}: they can't be compared, even with {option('allow_mismatch', True)}"
        )
    if model.loaded.identity.vocabulary < manifest.model.vocabulary:
        raise MismatchError(
            f"{root} may hold tokens up to {manifest.model.vocabulary - 1}, {model.loaded.identity.name!r} has "
            f"{model.loaded.identity.vocabulary} tokens: it can't predict the others, even with "
            f"{option('allow_mismatch', True)}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class KeyedWindow:
    """A window of a store's text with the stored keys.

    ``ids``: int64 (n,), the input of the LM. ``stored``: float32 (n, d), their keys. ``spread``: mean squared distance
    of the store's keys from their mean. ``source``: the source of the window, for an encoder-decoder model.
    """

    ids: Int64
    stored: Float32
    spread: float
    source: SourceBatch | None = None


def require_same_keys(
    root: Path, manifest: Manifest, model: KeyModel, window: KeyedWindow, allow: Allow | None = None
) -> None:
    """Raise MismatchError unless ``model`` reproduces the stored keys of a window.

    If given, ``allow`` is called with the message instead, except for another dimension or a smaller vocabulary.
    """
    ids, stored, source = window.ids, window.stored, window.source
    require_same_layer(root, manifest, model, allow)
    made, dimension = manifest.model.name, model.dimension
    if dimension != stored.shape[1]:
        raise MismatchError(
            f"{root} holds keys of {stored.shape[1]} dimensions by model {made!r}, but this model's keys have "
            f"{dimension}: load the model that made the store"
        )
    vocabulary = model.loaded.writable
    if int(ids.max()) >= vocabulary:
        raise MismatchError(
            f"{root} was made by model {made!r}: this one has {vocabulary} tokens, and no token {ids.max()}: "
            "load the model that made the store"
        )
    embedded = model.loaded.readable
    if source is not None and int(source.ids.max()) >= embedded:
        raise MismatchError(
            f"{root} was made by model {made!r}: this one reads {embedded} tokens, and no token {source.ids.max()}: "
            "load the model that made the store"
        )
    share = key_error(model, window)
    if not share <= LARGEST_ERROR:
        message = (
            f"{root} was made by model {made!r}: for its first {len(ids)} tokens this model makes other keys "
            f"(squared error {share:.2g} of their variance; the limit is {LARGEST_ERROR:g})"
        )
        if allow is None:
            raise MismatchError(
                f"{message}. Load the model that made the store, ingest again with this one, or give "
                "allow_mismatch=True"
            )
        allow(message)


def key_error(model: KeyModel, window: KeyedWindow, coded: Callable[[Float32], Float32] | None = None) -> float:
    """Return the squared error of the model's keys of a window, as a share of the variance of the stored keys.

    ``coded``: the effect of storage on keys, float32 (n, d); None to compare them unchanged.
    """
    keys: Float32 = model.keys(window.ids[None], window.source)[0].numpy()
    error = np.square((coded(keys) if coded else keys) - window.stored).sum(axis=1)
    # the median, because an unknown BOS of a model in memory changes only the first few positions
    return float(np.median(error)) / max(window.spread, float(np.finfo(np.float32).tiny))
