"""What an LM and a store must have in common; ``knnstore.recognition`` says whether one made the other."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.manifest import Manifest
from knnstore.errors import MismatchError
from knnstore.lm.forward import KeyModel
from knnstore.lm.loading import KINDS
from knnstore.lm.sources import SourceBatch
from knnstore.terminal import shell_command

Float32 = np.ndarray[Any, np.dtype[np.float32]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]
Allow = Callable[[str], None]
"""Told of a difference that is allowed."""

# Squared error of a key, as a share of the keys' variance. What makes the same LM differ from itself (int8 keys,
# bfloat16, other kernels) stays below a hundredth, another LM's keys are as far as any two keys: about 2.
LARGEST_ERROR = 0.05


def require_known_model(root: Path, manifest: Manifest) -> None:
    """Raise MismatchError if nothing says which LM made the store's keys, as after an import without one."""
    if not manifest.model.weights:
        raise MismatchError(
            f"{root} was imported without saying which LM made its keys: run 'knnstore import' again with --model, "
            "which compares them"
        )


def require_same_task(root: Path, manifest: Manifest, name: str, task: str) -> None:
    """Raise MismatchError unless a model of this task is of the kind that made the store."""
    if task != manifest.key.task:
        corpus = ("--task", "seq2seq", "--source", "FILE", "--target", "FILE")
        command = shell_command("ingest", *(corpus if task == "seq2seq" else ("--corpus", "PATH")), "--model", name)
        raise MismatchError(
            f"{root} was made by {KINDS[manifest.key.task]}, {manifest.model.name!r}, and {name!r} is {KINDS[task]}: "
            f"give the model that made it, or make a store for this one with {command!r}"
        )


def require_same_layer(root: Path, manifest: Manifest, model: KeyModel, allow: Allow | None = None) -> None:
    """Raise MismatchError unless the keys of ``model`` are taken where those of the store were; or tell ``allow``."""
    if model.point.layer != manifest.key.layer:
        sentence = f"{root} holds keys of {manifest.key.layer}, not {model.point.layer}"
        if allow is None:
            raise MismatchError(f"{sentence}: give the model that made it, or --allow-mismatch if you mean it")
        allow(sentence)


def require_fitting(root: Path, manifest: Manifest, model: KeyModel) -> None:
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


@dataclass(frozen=True, slots=True, eq=False)
class KeyedWindow:
    """A window of a store's text and the keys that the store holds of it.

    ``ids``: int64 (n,), the LM's input. ``stored``: float32 (n, d), their keys. ``spread``: mean squared distance of
    the store's keys from their mean. ``source``: of an encoder-decoder model, the window's source.
    """

    ids: Int64
    stored: Float32
    spread: float
    source: SourceBatch | None = None


def require_same_keys(
    root: Path, manifest: Manifest, model: KeyModel, window: KeyedWindow, allow: Allow | None = None
) -> None:
    """Raise MismatchError unless ``model``, from wherever it comes, makes the store's keys of a window of its text.

    ``allow`` is told of other keys, if they are allowed; keys of another width and fewer tokens never are.
    """
    ids, stored, source = window.ids, window.stored, window.source
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
    share = key_error(model, window)
    if not share <= LARGEST_ERROR:
        sentence = (
            f"{root} was made by model {made!r}: on its first {len(ids)} tokens this model makes other keys "
            f"(squared error {share:.2g} of their variance, at most {LARGEST_ERROR:g})"
        )
        if allow is None:
            raise MismatchError(
                f"{sentence}. Load the model that made it, ingest again with this one, or say allow_mismatch=True"
            )
        allow(sentence)


def key_error(model: KeyModel, window: KeyedWindow, coded: Callable[[Float32], Float32] | None = None) -> float:
    """How far the model's keys of a window are from the stored ones: squared, as a share of the keys' variance.

    ``coded``: what storing makes of keys, float32 (n, d); None to compare them as they are.
    """
    keys: Float32 = model.keys(window.ids[None], window.source)[0].numpy()
    error = np.square((coded(keys) if coded else keys) - window.stored).sum(axis=1)
    # the median, so that a BOS that the model in memory doesn't know spoils the first few positions alone
    return float(np.median(error)) / max(window.spread, float(np.finfo(np.float32).tiny))
