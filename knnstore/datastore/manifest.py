"""The manifest ``knnstore.json``: what the store is, and its finished parts. Replaced atomically, after all else."""

import re
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from knnstore import __version__
from knnstore.errors import (
    KnnstoreError,
    MismatchError,
    StoreNotFoundError,
)
from knnstore.files import load_json, version_of, write_json
from knnstore.records import LATER, from_json, to_json
from knnstore.wording import command

MANIFEST_FILE = "knnstore.json"
FORMAT_VERSION = 1
MOST_EPOCHS = 10**5
SEGMENT_NAME = re.compile(r"[0-9]{4,9}")
DIGEST_NAME = re.compile(r"[0-9a-f]{16}")

DECODER = "decoder-"
"""Prefix of a layer name: the keys are taken from the decoder of an encoder-decoder model."""


def task_of(layer: str) -> str:
    """Return ``seq2seq`` for a layer of a decoder that reads a source, else ``causal``."""
    return "seq2seq" if layer.startswith(DECODER) else "causal"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The LM whose hidden states the keys are.

    ``weights``, ``config`` and ``tokenizer`` are SHA-256 digests; ``name`` is only for display.
    """

    name: str
    weights: str
    config: str
    tokenizer: str
    vocabulary: int


@dataclass(frozen=True, slots=True)
class KeyRecipe:
    """How keys are made: layer, width, and the windows that give their context (tokens).

    The layer's name also gives the kind of LM: ``decoder-…`` is a layer of an encoder-decoder model, for which every
    document is a pair of texts in one window.
    """

    layer: str
    dimension: int
    context: int
    stride: int

    def __post_init__(self) -> None:
        if not (0 < self.dimension <= 2**20 and 0 < self.stride <= self.context <= 2**30):
            raise ValueError(f"impossible dimension {self.dimension}, context {self.context} or stride {self.stride}")
        if self.task == "seq2seq" and self.stride != self.context:
            raise ValueError(f"a pair of texts is one window, not one of {self.context} that slides by {self.stride}")

    @property
    def task(self) -> str:
        """Return ``causal`` or ``seq2seq``."""
        return task_of(self.layer)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One state of a store.

    ``segments``: names of the finished segments, in order. ``index``: name of the finished index, if any; ``indexed``:
    the segments whose lists it has. ``removed``: name of the table of removed documents, if any. ``state`` counts the
    changes so far. ``dropped``: the indexed segments whose keys are stored only in the index's lists; None if none are.
    ``epoch``: how often a writer has taken the store over from a writer that seemed dead; None for never.
    """

    format: str
    version: int
    model: ModelIdentity
    key: KeyRecipe
    segments: tuple[str, ...]
    index: str | None
    indexed: tuple[str, ...] = ()
    removed: str | None = None
    state: int = 0
    dropped: tuple[str, ...] | None = field(default=None, metadata=LATER)
    epoch: int | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.format != "knnstore" or self.version != FORMAT_VERSION:
            raise ValueError(f"format {self.format!r} {self.version}; this knnstore reads version {FORMAT_VERSION}")
        for what, names in (("segments", self.segments), ("indexed", self.indexed), ("dropped", self.dropped or ())):
            if wrong := next((name for name in names if not SEGMENT_NAME.fullmatch(name)), None):
                raise ValueError(f"{what} has {wrong!r:.40}, which isn't a segment number")
            if len(set(names)) < len(names):
                raise ValueError(
                    f"{what} has {Counter(names).most_common(1)[0][0]} more than once, so its keys would count twice"
                )
        for what, name in (("index", self.index), ("removed", self.removed)):
            if name is not None and not DIGEST_NAME.fullmatch(name):
                raise ValueError(f"{what} name {name!r} isn't 16 hexadecimal digits")
        if not set(self.indexed) <= set(self.segments) or (self.indexed and self.index is None):
            raise ValueError("an indexed segment isn't in the store, or there is no index")
        if not set(self.dropped or ()) <= set(self.indexed):
            raise ValueError("a segment without keys of its own isn't in the index")
        if not 0 <= self.state < 10**9:
            raise ValueError(f"impossible state {self.state}")
        if self.epoch is not None and not 0 < self.epoch < MOST_EPOCHS:
            raise ValueError(f"impossible epoch {self.epoch}")

    def in_epoch(self, epoch: int | None) -> "Manifest":
        """Return the same state in another epoch; 0 is the first, which is stored as None."""
        return replace(self, epoch=epoch or None)


def load_manifest(root: Path) -> Manifest:
    """Return the manifest of the store at ``root``.

    Raises StoreNotFoundError, CorruptStoreError, or MismatchError for another version of the format.
    """
    path = root / MANIFEST_FILE
    if version_of(path) is None:
        ingest = command("ingest", corpus="PATH", store=str(root))
        raise StoreNotFoundError(f"no store at {root}: make one with {ingest}")
    value = load_json(path)
    _require_this_version(root, value)
    return from_json(Manifest, value, str(path))


def save_manifest(root: Path, manifest: Manifest) -> None:
    """Write the manifest of a store that no other process can be writing."""
    write_json(root / MANIFEST_FILE, to_json(manifest))


def _require_this_version(root: Path, value: Any) -> None:
    """Raise MismatchError for a manifest of another version of knnstore: by its number, or by missing fields.

    Unknown fields are damage, for example of the checksum's name.
    """
    if not isinstance(value, dict) or value.get("format") != "knnstore" or not isinstance(value.get("version"), int):
        return
    version, required = value["version"], [each.name for each in fields(Manifest) if not each.metadata.get("left_out")]
    lacking = [name for name in required if name not in value]
    if version == FORMAT_VERSION and not lacking:
        return
    reason = f"its format is version {version}, and knnstore {__version__} reads version {FORMAT_VERSION}"
    if version == FORMAT_VERSION:  # from before the format was settled
        reason = f"its manifest lacks {', '.join(lacking)}, which knnstore {__version__} requires"
    step = "Read it with the version that made it"
    if version > FORMAT_VERSION:
        step = "Upgrade with 'pip install --upgrade knnstore'"
    ingest = command("ingest", corpus="PATH", store=str(root), overwrite=True)
    raise MismatchError(
        f"{root} was made by {_maker(root, value)}: {reason}. {step}, or make the store again with {ingest}"
    )


def _maker(root: Path, value: dict[str, Any]) -> str:
    """Return which version made a store's first segment, in words, as far as that can be read."""
    unknown = "another version of knnstore"
    try:
        first = value["segments"][0]
        if not SEGMENT_NAME.fullmatch(first):
            return unknown
        plan: Any = load_json(root / "segments" / first / "segment.json")
        version = str(plan["versions"]["knnstore"])
    except (KnnstoreError, LookupError, TypeError):
        return unknown
    if not re.fullmatch(r"[0-9A-Za-z.+!-]{1,40}", version):
        return unknown
    return f"an earlier build of knnstore {version}" if version == __version__ else f"knnstore {version}"
