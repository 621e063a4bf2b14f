"""Is this the LM that made a store? By fingerprint where the LM comes from files, by its keys where it is in memory."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.manifest import Manifest, ModelIdentity
from knnstore.errors import MismatchError
from knnstore.lm.forward import KeyModel, key_model
from knnstore.lm.loading import KINDS, model_task
from knnstore.lm.sources import SourceBatch
from knnstore.lm.spec import LmSpec
from knnstore.terminal import shell_command

Float32 = np.ndarray[Any, np.dtype[np.float32]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]
Allow = Callable[[str], None]
"""Told of a difference that is allowed."""

_LOADING = threading.Lock()  # transformers loads one model at a time
# Squared error of a key, as a share of the keys' variance. What makes the same LM differ from itself (int8 keys,
# bfloat16, other kernels) stays below a hundredth, another LM's keys are as far as any two keys: about 2.
_LARGEST_ERROR = 0.05


def require_known_model(root: Path, manifest: Manifest) -> None:
    """Raise MismatchError if nothing says which LM made the store's keys, as after an import without one."""
    if not manifest.model.weights:
        raise MismatchError(
            f"{root} was imported without saying which LM made its keys: run 'knnstore import' again with --model, "
            "which compares them"
        )


def model_of_store(
    root: Path, manifest: Manifest, name: str, *, dtype: str, device: str, allow: Allow | None = None
) -> KeyModel:
    """The LM called ``name``, loaded, if it made the keys of the store; ``allow`` as for ``require_same_model``.

    Raises ModelError if it can't be loaded, MismatchError if it is another, or nothing says which it was.
    """
    require_known_model(root, manifest)
    require_same_task(root, manifest, name, model_task(name))
    with _LOADING:
        model = key_model(LmSpec(name, manifest.key.layer, dtype, device, exact=True))
    require_same_model(root, manifest, model, allow)
    return model


def require_same_task(root: Path, manifest: Manifest, name: str, task: str) -> None:
    """Raise MismatchError unless a model of this task is of the kind that made the store."""
    if task != manifest.key.task:
        corpus = ("--task", "seq2seq", "--source", "FILE", "--target", "FILE")
        command = shell_command("ingest", *(corpus if task == "seq2seq" else ("--corpus", "PATH")), "--model", name)
        raise MismatchError(
            f"{root} was made by {KINDS[manifest.key.task]}, {manifest.model.name!r}, and {name!r} is {KINDS[task]}: "
            f"give the model that made it, or make a store for this one with {command!r}"
        )


def require_same_model(root: Path, manifest: Manifest, model: KeyModel, allow: Allow | None = None) -> None:
    """Raise MismatchError, naming what differs, unless ``model``, loaded from files, made the keys of the store.

    With ``allow`` the difference is told to it instead, and only what no arithmetic gets over is refused.
    """
    made, given = manifest.model, model.loaded.identity
    told = [name for name in ("weights", "config", "tokenizer", "vocabulary") if _differs(made, given, name)]
    if told:
        sentence = (
            f"{root} was made by model {made.name!r} ({made.weights[:12]}), not by {given.name!r} "
            f"({given.weights[:12]}): {', '.join(told)} differ"
        )
        if allow is None:
            raise MismatchError(
                f"{sentence}. Give the model that made it with --model, or --allow-mismatch if you mean it"
            )
        _require_fitting(root, manifest, model)
        allow(sentence)
    require_same_layer(root, manifest, model, allow)


def require_same_layer(root: Path, manifest: Manifest, model: KeyModel, allow: Allow | None = None) -> None:
    """Raise MismatchError unless the keys of ``model`` are taken where those of the store were; or tell ``allow``."""
    if model.point.layer != manifest.key.layer:
        sentence = f"{root} holds keys of {manifest.key.layer}, not {model.point.layer}"
        if allow is None:
            raise MismatchError(f"{sentence}: give the model that made it, or --allow-mismatch if you mean it")
        allow(sentence)


def _require_fitting(root: Path, manifest: Manifest, model: KeyModel) -> None:
    """Raise MismatchError where the model's queries and the store's keys and values can't meet at all."""
    dimension = model.dimension
    if dimension != manifest.key.dimension:
        raise MismatchError(
            f"{root} holds keys of {manifest.key.dimension} dimensions, {model.loaded.identity.name!r} makes keys of "
            f"{dimension}: between these there is no distance, --allow-mismatch or not"
        )
    if model.loaded.identity.vocabulary < manifest.model.vocabulary:
        raise MismatchError(
            f"{root} may hold tokens up to {manifest.model.vocabulary - 1}, {model.loaded.identity.name!r} has "
            f"{model.loaded.identity.vocabulary} tokens: it can't predict the others, --allow-mismatch or not"
        )


def require_same_keys(
    root: Path,
    manifest: Manifest,
    model: KeyModel,
    *,
    ids: Int64,
    stored: Float32,
    spread: float,
    source: SourceBatch | None = None,
    allow: Allow | None = None,
) -> None:
    """Raise MismatchError unless ``model``, from wherever it comes, makes the store's keys.

    Args:
        root, manifest: the store's.
        allow: told of other keys, if they are allowed; keys of another width and fewer tokens never are.
        ids: int64 (n,), the input of a window of the store.
        stored: float32 (n, d), the keys that the store holds of its positions.
        spread: mean squared distance of the store's keys from their mean.
        source: of an encoder-decoder model, the window's source.
    """
    require_same_layer(root, manifest, model, allow)
    made, dimension = manifest.model.name, model.dimension
    if dimension != stored.shape[1]:
        raise MismatchError(
            f"{root} holds keys of {stored.shape[1]} dimensions by model {made!r}, this one's have {dimension}: "
            "load the model that made it"
        )
    vocabulary = model.loaded.writable
    if int(ids.max()) >= vocabulary:
        raise MismatchError(
            f"{root} was made by model {made!r}: this one has {vocabulary} tokens, and no token {ids.max()}: "
            "load the model that made it"
        )
    embedded = model.loaded.readable
    if source is not None and int(source.ids.max()) >= embedded:
        raise MismatchError(
            f"{root} was made by model {made!r}: this one reads {embedded} tokens, and no token {source.ids.max()}: "
            "load the model that made it"
        )
    keys = model.keys(ids[None], source)[0].numpy()  # (n, d)
    error = np.square(keys - stored).sum(axis=1)
    # the median, so that a BOS that the model in memory doesn't know spoils the first few positions alone
    share = float(np.median(error)) / spread
    if not share <= _LARGEST_ERROR:
        sentence = (
            f"{root} was made by model {made!r}: on its first {len(ids)} tokens this model makes other keys "
            f"(squared error {share:.2g} of their variance, at most {_LARGEST_ERROR:g})"
        )
        if allow is None:
            raise MismatchError(
                f"{sentence}. Load the model that made it, ingest again with this one, or say allow_mismatch=True"
            )
        allow(sentence)


def _differs(made: ModelIdentity, given: ModelIdentity, name: str) -> bool:
    return bool(getattr(made, name) != getattr(given, name))
