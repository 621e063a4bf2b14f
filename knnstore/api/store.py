"""A store in the hands of a program."""

import threading
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.attachment import Joined, Search, adopted_model, choose_mixture
from knnstore.attribution import Attribution, attribute_texts
from knnstore.datastore.store import Datastore, only_store, store_path
from knnstore.datastore.stores import Stores
from knnstore.errors import MismatchWarning, UsageError
from knnstore.generation import Generation
from knnstore.lm.forward import KeyModel
from knnstore.lm.sources import SourceBatch
from knnstore.lm.spec import default_model
from knnstore.lm.streaming import Sampling
from knnstore.neighbours import ABSENT, Neighbours
from knnstore.passages import CONTEXT_TOKENS, Passage, Passages
from knnstore.progress import Reporter
from knnstore.recognition import model_of_store
from knnstore.score.options import ScoreOptions
from knnstore.score.texts import gather_texts, texts_of


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored context like the one asked for, and the token that followed it.

    ``distance``: squared L2 of its key to the query. ``passage``: where it stands, as text.
    """

    distance: float
    token_id: int
    passage: Passage

    @property
    def document(self) -> str:
        """The document that it is from."""
        return str(self.passage.document)

    @property
    def token(self) -> str:
        """The token that followed."""
        return self.passage.token

    @property
    def context(self) -> str:
        """The text before that token."""
        return self.passage.before


class Store:
    """A finished store with, where text is given or wanted, the LM that made it.

    ``model``: what ``--model`` takes, or a causal LM of transformers that is in memory, with its ``tokenizer``. It is
    loaded, and held against the store, when first needed. Any method but ``close`` may be called by several threads
    at once.
    """

    def __init__(
        self,
        datastore: Datastore,
        model: Any = None,
        tokenizer: Any = None,
        *,
        device: str,
        dtype: str,
        allow_mismatch: bool = False,
    ) -> None:
        if tokenizer is not None and (model is None or isinstance(model, str | Path)):
            raise UsageError("a tokenizer is given without the model in memory that it belongs to")
        self.datastore = datastore
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._dtype = dtype
        self._allow = warn_of_mismatch if allow_mismatch else None
        self._searches: dict[tuple[int | None, bool], Search] = {}
        self._opening = threading.Lock()

    @property
    def name(self) -> str:
        """The store's name, without the suffix."""
        return self.datastore.name

    @property
    def dimension(self) -> int:
        """Width of a key."""
        return self.datastore.manifest.key.dimension

    def close(self) -> None:
        """Let writers remove the files of the state that is open, once another follows it."""
        self.datastore.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of (key, value) pairs that a search can find."""
        return self.datastore.live_rows

    def __repr__(self) -> str:
        return f"Store({str(self.datastore.root)!r}, {len(self):,} keys of {self.dimension})"

    @cached_property
    def lm(self) -> KeyModel:
        """The LM that made the store. Raises ModelError if it can't be loaded, MismatchError if it is another."""
        if self._model is None or isinstance(self._model, str | Path):
            name = default_model() if self._model is None else str(self._model)
            loading = {"dtype": self._dtype, "device": self._device}
            return model_of_store(self.datastore, name, **loading, allow=self._allow, say=warn_of_mismatch)
        return adopted_model(self.datastore, self._model, self._tokenizer, self._allow)

    @cached_property
    def passages(self) -> Passages:
        """The text around any row, by the LM's tokenizer."""
        return Passages(self.datastore, self.lm.loaded.decode)

    def search(self, keys: Any, k: int = 1024, *, nprobe: int | None = None, exact: bool = False) -> Neighbours:
        """The k nearest stored keys of each of ``keys``, (n, d), a NumPy array or a tensor of any device and dtype.

        ``nprobe``: lists that a query searches, the index's own number if None; ``exact`` searches every key, and
        needs no index. Raises UnfinishedError without an index, UsageError or NumericsError for keys that don't fit.
        """
        queries = keys.detach().float().cpu().numpy() if hasattr(keys, "detach") else np.asarray(keys, np.float32)
        if queries.ndim != 2:
            raise UsageError(f"keys are {queries.shape}: give (n, {self.dimension})")
        return self.searching(nprobe=nprobe, exact=exact)(np.ascontiguousarray(queries), k)

    def searching(self, *, nprobe: int | None = None, exact: bool = False) -> Search:
        """How this store is searched; opened once."""
        with self._opening:
            if (nprobe, exact) not in self._searches:
                self._searches[nprobe, exact] = Search(self.datastore, nprobe=nprobe, exact=exact)
            return self._searches[nprobe, exact]

    @property
    def task(self) -> str:
        """``causal``, or ``seq2seq`` for a store of pairs of texts, made by an encoder-decoder model."""
        return self.datastore.manifest.key.task

    def key(self, text: str, source: str | None = None) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """The key of what comes after ``text``, float32 (d,): the LM's state when it has read all of it.

        ``source``: of a seq2seq store, what ``text`` begins to translate.
        """
        loaded, context = self.lm.loaded, self.datastore.manifest.key.context
        if self.task == "seq2seq":
            if source is None:
                raise UsageError(f"{self.name} holds pairs of texts: say what the text translates, with its source")
            read = SourceBatch.of([loaded.tokenise_source(source)[:context]], loaded.pad)
            ids = loaded.begun_target(text)[:context]
        elif source is not None:
            raise UsageError(f"{self.name} holds texts without sources: give the text alone")
        else:
            read, ids = None, np.concatenate([[loaded.bos], loaded.tokenise(text)])[-context:]
        key: np.ndarray[Any, np.dtype[np.float32]] = self.lm.keys(ids[None], read)[0, -1].numpy()
        return key

    def neighbours(
        self,
        text: str,
        k: int = 8,
        *,
        source: str | None = None,
        nprobe: int | None = None,
        exact: bool = False,
        before: int = CONTEXT_TOKENS,
        after: int = 12,
    ) -> list[Neighbour]:
        """The k stored contexts that are nearest to ``text`` for the LM, nearest first, each with what followed it.

        ``source``: of a seq2seq store, what ``text`` begins to translate; ``text`` may be empty then.
        ``before`` and ``after``: tokens of the passage on either side of the one that followed.
        """
        found = self.search(self.key(text, source)[None], k, nprobe=nprobe, exact=exact)
        assert found.rows is not None
        return [
            Neighbour(float(distance), int(token), self.passages.at(int(row), before, after))
            for distance, token, row in zip(found.distances[0], found.values[0], found.rows[0], strict=True)
            if token != ABSENT
        ]

    def joined(
        self,
        *,
        k: int | None = None,
        lambda_: float | None = None,
        temperature: float | None = None,
        nprobe: int | None = None,
        exact: bool = False,
    ) -> Joined:
        """Return the LM and this store, with a mixture as given, else all that was tuned, else a cautious default."""
        search = self.searching(nprobe=nprobe, exact=exact)
        mixed_by = choose_mixture(self.datastore, search, k=k, lambda_=lambda_, temperature=temperature)
        return Joined(self.lm, self.datastore.manifest.key, search, self.passages, mixed_by)

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        *,
        sampling: Sampling | None = None,
        joined: Joined | None = None,
        generation_config: bool = False,
    ) -> Generation:
        """A text after ``prompt``, to iterate over as it is written; each token says what it owes to the store.

        By an encoder-decoder model it is the text that the prompt, its source, becomes.
        ``sampling``: the most probable token each time if None. ``joined``: of this store, with a setting other than
        the default. ``generation_config``: apply the penalties and bans that the model's generation_config.json asks
        for, and its sampling where ``sampling`` is None. Raises UsageError for numbers that don't fit.
        """
        return Generation(
            joined or self.joined(), prompt, max_new_tokens, sampling, generation_config=generation_config
        )

    def attribute(
        self,
        text: str | ScoreOptions,
        *,
        source: str | None = None,
        joined: Joined | None = None,
        reporter: Reporter | None = None,
    ) -> Attribution:
        """Which documents of the store earned the probability of ``text``, and how much of it was the LM.

        ``source``: of a seq2seq store, what ``text`` translates.
        Options in place of a text name files, as for ``score``; without any it is the text that the store held out.
        """
        joined = joined or self.joined()
        loaded = joined.model.loaded
        if isinstance(text, ScoreOptions):
            texts = gather_texts(text, Stores([self.datastore]), loaded)[1]
        else:
            texts = texts_of(
                [("text", text)],
                loaded,
                [] if source is None else [source],
                special=self.datastore.special_tokens,
            )
        return attribute_texts(joined, texts, reporter or Reporter())


def open(
    store: str | Path | None = None,
    model: Any = None,
    tokenizer: Any = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    allow_mismatch: bool = False,
) -> Store:
    """Open a store for reading, by name, path or ``file://`` URL; None is the only one in this folder.

    Args:
        store: what ``--store`` takes.
        model: what ``--model`` takes, or a causal LM of transformers in memory. Default: $KNNSTORE_MODEL, else the
            shipped wiki-lm. Nothing is loaded until it is needed.
        tokenizer: that of a model in memory, for calls that take or give text.
        device, dtype: for an LM that is loaded, as ``--device`` and ``--dtype``.
        allow_mismatch: warn of another LM, tokenizer or key layer than the store's (MismatchWarning), and use it.

    Raises StoreNotFoundError, UnfinishedError or CorruptStoreError.
    """
    root = only_store(Path()) if store is None else store_path(str(store))
    return Store(Datastore(root), model, tokenizer, device=device, dtype=dtype, allow_mismatch=allow_mismatch)


def warn_of_mismatch(told: str) -> None:
    """What the caller allowed is told as a warning."""
    warnings.warn(told, MismatchWarning, stacklevel=3)
