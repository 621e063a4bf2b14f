"""Is this the LM that made a store? By its fingerprint, and where that can't tell by the keys of the store's text."""

import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np

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
    Float32,
    KeyedWindow,
    key_error,
    require_fitting,
    require_known_model,
    require_same_layer,
    require_same_task,
)
from knnstore.lm.sources import SourceBatch
from knnstore.lm.spec import LmSpec, Recognition

_LOADING = threading.Lock()  # transformers loads one model at a time
# Enough keys to tell how far they lie apart.
_SAMPLE_ROWS = 1024
# The squared error of a key, as a share of the keys' variance, that the same LM makes in the same dtype under other
# versions of its libraries. In another dtype, and of keys that another toolkit made, it may be a twentieth.
_SAME_DTYPE_ERROR = 0.01
# Documents that are tried for one whose keys can be read, and those whose text is tokenised again.
_TRIED, _RETOKENISED = 8, 16
# Tokens of the end of a text that may be others once the text is cut there.
_CUT = 8


def window_of(segment: Segment, loaded: LoadedModel, *, made_only: bool = False) -> KeyedWindow | None:
    """The first window of a long document of the segment; None if the keys of none are there.

    ``made_only``: of a segment that isn't finished, or damaged: documents whose keys are committed and can be read.
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
    """Whether ``model``, loaded from files, is the LM that made a segment of a store.

    Weights and vocabulary have to be the same. A tokenizer's digest that an earlier version of knnstore made may
    differ with the libraries' versions: then the tokenizer has to make the segment's tokens of its text. Where the
    configuration's digest differs, or the segment was made under another version of transformers, the keys of a window
    of the segment's text have to be the model's, within the error that is documented above.
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
    # other keys are refused for that, or meant
    other_keys = model.point.layer != segment.plan.key.layer or model.dimension != segment.plan.key.dimension
    if other_tokens or other_keys:
        return Recognition(given, tuple(differing))
    if not text:
        return Recognition(given)
    return _by_keys(segment, model, "config" if differing else "", made_only)


def _by_keys(segment: Segment, model: KeyModel, differing: str, made_only: bool) -> Recognition:
    """Whether the model makes the segment's keys of a window of its text; it does where no keys are there yet."""
    given = model.loaded.identity
    window = window_of(segment, model.loaded, made_only=made_only)
    if window is None:
        return Recognition(given)
    own = segment.plan.compute == f"{model.loaded.dtype} on {model.loaded.device.type}"
    largest, error = _SAME_DTYPE_ERROR if own else LARGEST_ERROR, _coded_error(segment, model, window)
    told = (
        f"the squared error of the keys of its first {len(window.ids)} tokens is {error:.2g} of their variance (at "
        f"most {largest:g})"
    )
    if not error <= largest:
        return Recognition(given, (differing or "computation",), told)
    return Recognition(given, (), told if differing else "")


def _coded_error(segment: Segment, model: KeyModel, window: KeyedWindow) -> float:
    """The error of the model's keys once they are stored as the segment's are, which takes int8's share out of it."""

    def coded(keys: Float32) -> Float32:
        try:
            return segment.codec.decode(segment.codec.encode(keys))
        except NumericsError:
            return keys

    return key_error(model, window, coded)


def _has_text(segment: Segment) -> bool:
    """Whether the documents of a segment that was begun, or is damaged, are there."""
    try:
        return segment.commits.find(DOCUMENTS_TASK) is not None and len(segment.documents) > 0
    except CorruptStoreError:
        return False


def _makes_its_tokens(segment: Segment, loaded: LoadedModel) -> bool:
    """Whether the tokenizer makes the stored tokens of the text that they decode to, over some documents.

    Raises CorruptStoreError where they can't be read.
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
    """The LM called ``name``, loaded, if it made the keys of the store; ``allow`` and ``say`` as for
    ``require_same_model``.

    Raises ModelError if it can't be loaded, MismatchError if it is another, or nothing says which it was.
    """
    root, manifest = store.root, store.manifest
    require_known_model(root, manifest)
    require_same_task(root, manifest, name, model_task(name))
    with _LOADING:
        model = key_model(LmSpec(name, manifest.key.layer, dtype, device))
    require_same_model(store, model, allow, say)
    return model


def require_same_model(store: Datastore, model: KeyModel, allow: Allow | None = None, say: Allow | None = None) -> None:
    """Raise MismatchError, naming what differs, unless ``model``, loaded from files, made the keys of the store.

    With ``allow`` the difference is told to it instead, and only what no arithmetic gets over is refused. ``say`` is
    told where only the keys could tell.
    """
    root, made = store.root, store.manifest.model
    recognition = recognise(store.segments[0], model)
    if recognition.differing:
        sentence = mismatch(root, made, recognition)
        if allow is None:
            raise MismatchError(
                f"{sentence}. Give the model that made it with --model, or --allow-mismatch if you mean it"
            )
        require_fitting(root, store.manifest, model)
        allow(sentence)
    elif recognition.keys and say is not None:
        say(same(root, made, recognition))
    require_same_layer(root, store.manifest, model, allow)


def mismatch(root: Path, made: ModelIdentity, recognition: Recognition) -> str:
    """What differs, in words, without an end."""
    given = recognition.identity
    named = (
        f"{root} was made by model {made.name!r} ({made.weights[:12]}), not by {given.name!r} ({given.weights[:12]})"
    )
    keys = f"; {recognition.keys}" if recognition.keys else ""
    return f"{named}: {', '.join(recognition.differing)} differ{keys}"


def same(root: Path, made: ModelIdentity, recognition: Recognition) -> str:
    """That a model is the store's though a digest differs, in words."""
    return (
        f"{root} knows {made.name!r} by digests that other versions of the libraries made; it is the same LM: "
        f"{recognition.keys}"
    )
