"""Decide whether an LM made a store: by its fingerprint or, if that isn't conclusive, by keys of the store's text."""

import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np

from knnstore.arrays import Float32
from knnstore.datastore.manifest import ModelIdentity
from knnstore.datastore.segment import DOCUMENTS_TASK, Segment, keys_task
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError, MismatchError, NumericsError
from knnstore.lm.forward import KeyModel, key_model
from knnstore.lm.identity import is_stable
from knnstore.lm.loading import LoadedModel, model_task
from knnstore.lm.matching import (
    LARGEST_ERROR,
    Allow,
    KeyedWindow,
    key_error,
    require_fitting,
    require_known_model,
    require_same_layer,
    require_same_task,
)
from knnstore.lm.sources import SourceBatch
from knnstore.lm.spec import LmSpec, Recognition
from knnstore.wording import option

_LOADING = threading.Lock()  # transformers loads one model at a time
# Number of keys from which their variance is estimated.
_SAMPLE_ROWS = 1024
# Maximum squared error of a key, as a share of the keys' variance, of the same LM in the same dtype under other library
# versions. In another dtype, or for keys made by another toolkit, it may be a twentieth.
_SAME_DTYPE_ERROR = 0.01
# Number of documents tried for readable keys, and number of documents tokenised again.
_TRIED, _RETOKENISED = 8, 16
# Number of tokens at the end of a text that may change when the text is cut there.
_CUT = 8


def window_of(segment: Segment, loaded: LoadedModel, *, made_only: bool = False) -> KeyedWindow | None:
    """Return the first window of a long document of the segment; None if no keys are available.

    ``made_only``: consider only documents with committed, readable keys, in an unfinished or damaged segment.
    """
    table, stride = segment.documents, segment.plan.key.stride
    longest = np.argsort(-np.minimum(table.tokens, stride), kind="stable")
    for document in longest[: _TRIED if made_only else 1].tolist():
        first = int(table.first_row[document])
        last = first + int(min(table.tokens[document], stride))
        try:
            if last > first and (not made_only or _has_keys(segment, first, last)):
                return _window(segment, loaded, document, first, last)
        except CorruptStoreError:
            if not made_only:
                raise
    return None


def _window(segment: Segment, loaded: LoadedModel, document: int, first: int, last: int) -> KeyedWindow:
    ids = np.concatenate([[loaded.bos], segment.values(first, last - 1)]).astype(np.int64)
    source = None
    if segment.plan.key.task == "seq2seq":
        source = SourceBatch.of([segment.source(document)], loaded.pad)
    stored = segment.codec.decode(segment.keys(first, last))
    chunk = first // segment.plan.chunk_rows
    begin, end = segment.chunk_range(chunk)
    sample = segment.codec.decode(segment.keys(begin, min(end, begin + _SAMPLE_ROWS)))
    spread = np.square(sample - sample.mean(axis=0)).sum(axis=1).mean() if len(sample) > 1 else np.square(sample).sum()
    return KeyedWindow(ids, stored, float(spread), source)


def _has_keys(segment: Segment, first: int, last: int) -> bool:
    rows = segment.plan.chunk_rows
    tasks = [keys_task(chunk) for chunk in range(first // rows, (last - 1) // rows + 1)]
    return len(segment.commits.find_all(tasks)) == len(tasks)


def recognise(segment: Segment, model: KeyModel, *, made_only: bool = False) -> Recognition:
    """Decide whether ``model``, loaded from files, is the LM that made a segment of a store.

    Weights and vocabulary must be equal. A digest of the tokenizer by an earlier version of knnstore may differ with
    library versions: then the tokenizer must reproduce the segment's tokens. If the digest of the configuration
    differs, or the segment was made with another version of transformers, the model must reproduce the keys of a window
    of the segment's text, within the error documented above.
    """
    made, given = segment.plan.model, model.loaded.identity
    names = ("weights", "config", "tokenizer", "vocabulary")
    differing = [name for name in names if getattr(made, name) != getattr(given, name)]
    if {"config", "tokenizer"} & set(differing):
        former = dict(zip(("config", "tokenizer"), model.loaded.former_digests, strict=True))
        differing = [name for name in differing if former.get(name) != getattr(made, name)]
    if {"weights", "vocabulary"} & set(differing):
        return Recognition(given, tuple(differing))
    if not differing and segment.plan.versions.get("transformers") in (None, version("transformers")):
        return Recognition(given)
    text = not made_only or _has_text(segment)
    other_tokens = "tokenizer" in differing and (
        is_stable(made.tokenizer) or not text or not _makes_its_tokens(segment, model.loaded)
    )
    # a different layer or dimension is refused elsewhere, or intended
    other_keys = model.point.layer != segment.plan.key.layer or model.dimension != segment.plan.key.dimension
    if other_tokens or other_keys:
        return Recognition(given, tuple(differing))
    if not text:
        return Recognition(given)
    return _by_keys(segment, model, "config" if differing else "", made_only)


def _by_keys(segment: Segment, model: KeyModel, differing: str, made_only: bool) -> Recognition:
    """Decide whether the model reproduces the keys of a window of the segment; yes if there are no keys yet."""
    given = model.loaded.identity
    window = window_of(segment, model.loaded, made_only=made_only)
    if window is None:
        return Recognition(given)
    own = segment.plan.compute == f"{model.loaded.dtype} on {model.loaded.device.type}"
    largest, error = _SAME_DTYPE_ERROR if own else LARGEST_ERROR, _coded_error(segment, model, window)
    comparison = (
        f"the squared error of the keys of its first {len(window.ids)} tokens is {error:.2g} of their variance (limit "
        f"{largest:g})"
    )
    if not error <= largest:
        return Recognition(given, (differing or "computation",), comparison)
    return Recognition(given, (), comparison if differing else "")


def _coded_error(segment: Segment, model: KeyModel, window: KeyedWindow) -> float:
    """Return the error of the model's keys after encoding them like the segment's, which excludes the error of int8."""

    def coded(keys: Float32) -> Float32:
        try:
            return segment.codec.decode(segment.codec.encode(keys))
        except NumericsError:
            return keys

    return key_error(model, window, coded)


def _has_text(segment: Segment) -> bool:
    """Return whether the documents of an unfinished or damaged segment are available."""
    try:
        return segment.commits.find(DOCUMENTS_TASK) is not None and len(segment.documents) > 0
    except CorruptStoreError:
        return False


def _makes_its_tokens(segment: Segment, loaded: LoadedModel) -> bool:
    """Return whether the tokenizer reproduces the stored tokens of some documents from their decoded text.

    Raises CorruptStoreError if they can't be read.
    """
    table, longest = segment.documents, segment.plan.key.context
    documents = np.flatnonzero(table.tokens > _CUT)
    chosen = documents[np.unique(np.linspace(0, len(documents) - 1, min(_RETOKENISED, len(documents)), dtype=np.int64))]
    special = set(loaded.tokenizer.all_special_ids)
    tokenise = loaded.tokenise_target if segment.plan.key.task == "seq2seq" else loaded.tokenise
    for document in chosen.tolist():
        first = int(table.first_row[document])
        values = segment.values(first, first + int(min(table.tokens[document], longest))).tolist()
        ids = [token for token in values if token not in special]
        text = tokenise(loaded.decode(ids), special=segment.plan.special_tokens is not False)
        again = [token for token in text.tolist() if token not in special]
        if again[: len(ids) - _CUT] != ids[:-_CUT]:
            return False
    return True


def model_of_store(
    store: Datastore, name: str, *, dtype: str, device: str, allow: Allow | None = None, say: Allow | None = None
) -> KeyModel:
    """Load the LM called ``name``, which must have made the keys of the store.

    ``allow`` and ``say``: see ``require_same_model``. Raises ModelError if the LM can't be loaded, and MismatchError if
    it differs or the LM of the store is unknown.
    """
    root, manifest = store.root, store.manifest
    require_known_model(root, manifest)
    require_same_task(root, manifest, name, model_task(name))
    with _LOADING:
        model = key_model(LmSpec(name, manifest.key.layer, dtype, device))
    require_same_model(store, model, allow, say)
    return model


def require_same_model(store: Datastore, model: KeyModel, allow: Allow | None = None, say: Allow | None = None) -> None:
    """Raise MismatchError, with the differences, unless ``model``, loaded from files, made the keys of the store.

    If given, ``allow`` is called with the message instead, and only models that can't be used at all are refused.
    ``say`` is called with a message if only the keys could decide.
    """
    root, made = store.root, store.manifest.model
    recognition = recognise(store.segments[0], model)
    if recognition.differing:
        message = mismatch(root, made, recognition)
        if allow is None:
            raise MismatchError(
                f"{message}. Give the model that made the store with {option('model')}, or "
                f"{option('allow_mismatch', True)} to accept this"
            )
        require_fitting(root, store.manifest, model)
        allow(message)
    elif recognition.keys and say is not None:
        say(same(root, made, recognition))
    require_same_layer(root, store.manifest, model, allow)


def mismatch(root: Path, made: ModelIdentity, recognition: Recognition) -> str:
    """Return the message about a mismatch, without a final period."""
    given = recognition.identity
    named = (
        f"{root} was made by model {made.name!r} ({made.weights[:12]}), not by {given.name!r} ({given.weights[:12]})"
    )
    keys = f"; {recognition.keys}" if recognition.keys else ""
    return f"{named}: {', '.join(recognition.differing)} differ{keys}"


def same(root: Path, made: ModelIdentity, recognition: Recognition) -> str:
    """Return the message that a model is the store's although a digest differs."""
    return (
        f"{root} records {made.name!r} with digests by other library versions, but it is the same LM: "
        f"{recognition.keys}"
    )
