"""A store opened by a program."""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from knnstore.arrays import Float32
from knnstore.attachment.attach import Joined, adopted_model
from knnstore.attachment.defaults import choose_mixture
from knnstore.attachment.search import Search
from knnstore.attribution import Attribution, attribute_texts
from knnstore.datastore.store import Datastore
from knnstore.datastore.stores import Stores
from knnstore.errors import MismatchWarning, UsageError
from knnstore.generation import Generation
from knnstore.lm.forward import KeyModel
from knnstore.lm.sources import SourceBatch
from knnstore.lm.spec import default_model
from knnstore.lm.streaming import Sampling
from knnstore.neighbours import ABSENT, Neighbours
from knnstore.operations.compact import compact
from knnstore.operations.export import export
from knnstore.operations.index import index
from knnstore.operations.info import info
from knnstore.operations.log import log
from knnstore.operations.remove import remove
from knnstore.operations.repair import repair
from knnstore.operations.restore import restore
from knnstore.operations.score import score as score_operation
from knnstore.operations.shared import StoreName, open_store
from knnstore.operations.subset import subset
from knnstore.operations.suffixes import suffixes
from knnstore.operations.tune import tune as tune_operation
from knnstore.operations.verify import verify
from knnstore.passages import CONTEXT_TOKENS, Passage, Passages
from knnstore.progress import Reporter
from knnstore.recognition import model_of_store
from knnstore.scoring.crossvalidation import TuneReport
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.result import ScoreReport
from knnstore.scoring.texts import gather_texts, texts_of

Given = ParamSpec("Given")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored context similar to the query, and the token that followed it.

    ``distance``: squared L2 distance of its key to the query. ``passage``: the text around it.
    """

    distance: float
    token_id: int
    passage: Passage

    @property
    def document(self) -> str:
        """Return the document of the context."""
        return str(self.passage.document)

    @property
    def token(self) -> str:
        """Return the token that followed."""
        return self.passage.token

    @property
    def context(self) -> str:
        """Return the text before that token."""
        return self.passage.before


def _method(
    operation: Callable[Concatenate[StoreName, Given], Result], *, changes: bool = False
) -> "Callable[Concatenate[Store, Given], Result]":
    """Return an operation as a method. One that ``changes`` the store leaves it open in its new state."""

    @wraps(operation)
    def method(store: "Store", /, *arguments: Given.args, **options: Given.kwargs) -> Result:
        if not changes:
            return operation(store.datastore.root, *arguments, **options)
        store.close()
        try:
            return operation(store.datastore.root, *arguments, **options)
        finally:
            store.reopen()

    return method


class Store:
    """A finished store and, for methods that read or return text, the LM that made it.

    ``model``: a folder, name or hub id, or a causal LM of transformers in memory, with its ``tokenizer``. It is
    loaded, and compared with the store, when first needed. All methods except ``close`` may be called by several
    threads at once.
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
            raise UsageError("tokenizer is given without a model in memory: give both")
        self.datastore = datastore
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._dtype = dtype
        self._allow = warn_of_mismatch if allow_mismatch else None
        self._searches: dict[tuple[int | None, bool], Search] = {}
        self._opening = threading.Lock()

    compact = _method(compact, changes=True)
    export = _method(export)
    index = _method(index, changes=True)
    info = _method(info)
    log = _method(log)
    remove = _method(remove, changes=True)
    repair = _method(repair, changes=True)
    restore = _method(restore, changes=True)
    subset = _method(subset)
    suffixes = _method(suffixes)
    verify = _method(verify)

    def score(self, **options: Any) -> ScoreReport:
        """Measure the perplexity of a text with and without the store; see ``knnstore.score``."""
        if not (self._model is None or isinstance(self._model, str | Path)):
            raise UsageError("score loads the LM itself: open the store with its name, not with a model in memory")
        lm = {"model": self._model, "device": self._device, "dtype": self._dtype}
        return score_operation(self.datastore.root, **lm | {"allow_mismatch": self._allow is not None} | options)

    def tune(self, file: str | Path, **options: Any) -> TuneReport:
        """Find the best mixture from saved neighbours and store it; see ``knnstore.tune``."""
        return tune_operation(file, self.datastore.root, **options)

    @property
    def name(self) -> str:
        """Return the name of the store, without the suffix."""
        return self.datastore.name

    @property
    def dimension(self) -> int:
        """Return the dimension of a key."""
        return self.datastore.manifest.key.dimension

    def close(self) -> None:
        """Close the store, so that writers may remove the files of this state once it is replaced."""
        self.datastore.close()

    def reopen(self) -> None:
        """Read the present state of the store, which other programs may have changed, too."""
        with self._opening:
            self.datastore.close()
            self.datastore = Datastore(self.datastore.root)
            self._searches.clear()
            vars(self).pop("passages", None)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of (key, value) pairs that a search can find."""
        return self.datastore.live_rows

    def __repr__(self) -> str:
        return f"Store({str(self.datastore.root)!r}, {len(self):,} keys of {self.dimension})"

    @cached_property
    def lm(self) -> KeyModel:
        """Return the LM that made the store. Raises ModelError if it can't be loaded, MismatchError if it differs."""
        if self._model is None or isinstance(self._model, str | Path):
            name = default_model() if self._model is None else str(self._model)
            loading = {"dtype": self._dtype, "device": self._device}
            return model_of_store(self.datastore, name, **loading, allow=self._allow, say=warn_of_mismatch)
        return adopted_model(self.datastore, self._model, self._tokenizer, self._allow)

    @cached_property
    def passages(self) -> Passages:
        """Return access to the text around any row, decoded by the LM's tokenizer."""
        return Passages(self.datastore, self.lm.loaded.decode)

    def search(self, keys: Any, k: int = 1024, *, nprobe: int | None = None, exact: bool = False) -> Neighbours:
        """Return the k nearest stored keys of ``keys``, (n, d), a NumPy array or a tensor of any device and dtype.

        ``nprobe``: lists searched per query; None for the default of the index. ``exact``: search every key, without an
        index. Raises UnfinishedError without an index, UsageError or NumericsError for invalid keys.
        """
        queries = keys.detach().float().cpu().numpy() if hasattr(keys, "detach") else np.asarray(keys, np.float32)
        if queries.ndim != 2:
            raise UsageError(f"keys have shape {queries.shape}: give (n, {self.dimension})")
        return self.searching(nprobe=nprobe, exact=exact)(np.ascontiguousarray(queries), k)

    def searching(self, *, nprobe: int | None = None, exact: bool = False) -> Search:
        """Return the search of this store with these options, opened once."""
        with self._opening:
            if (nprobe, exact) not in self._searches:
                self._searches[nprobe, exact] = Search(self.datastore, nprobe=nprobe, exact=exact)
            return self._searches[nprobe, exact]

    @property
    def task(self) -> str:
        """Return ``causal``, or ``seq2seq`` for a store of pairs of texts, made by an encoder-decoder model."""
        return self.datastore.manifest.key.task

    def key(self, text: str, source: str | None = None) -> Float32:
        """Return the key after ``text``, float32 (d,): the LM's state when it has read the whole text.

        ``source``: for a seq2seq store, the source of which ``text`` is the start of a translation.
        """
        loaded, context = self.lm.loaded, self.datastore.manifest.key.context
        if self.task == "seq2seq":
            if source is None:
                raise UsageError(f"{self.name} holds pairs of texts: give the source of the text with source")
            read = SourceBatch.of([loaded.tokenise_source(source)[:context]], loaded.pad)
            ids = loaded.begun_target(text)[:context]
        elif source is not None:
            raise UsageError(f"{self.name} holds texts without sources: omit source")
        else:
            read, ids = None, np.concatenate([[loaded.bos], loaded.tokenise(text)])[-context:]
        key: Float32 = self.lm.keys(ids[None], read)[0, -1].numpy()
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
        """Return the k stored contexts that are nearest to ``text``, nearest first, each with the token that followed.

        ``source``: for a seq2seq store, the source of which ``text`` is the start of a translation; ``text`` may then
        be empty. ``before`` and ``after``: tokens of the passage on either side of the token that followed.
        """
        nearest = self.search(self.key(text, source)[None], k, nprobe=nprobe, exact=exact)
        assert nearest.rows is not None
        return [
            Neighbour(float(distance), int(token), self.passages.at(int(row), before, after))
            for distance, token, row in zip(nearest.distances[0], nearest.values[0], nearest.rows[0], strict=True)
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
        """Join the LM and this store with the given mixture, else the tuned one, else a cautious default."""
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
        """Generate a continuation of ``prompt``, to iterate over token by token, with the store's share of each token.

        For an encoder-decoder model, ``prompt`` is the source. ``sampling``: None for always the most probable token.
        ``joined``: this store with a setting other than the default. ``generation_config``: apply the penalties and
        bans of the model's generation_config.json, and its sampling if ``sampling`` is None. Raises UsageError for
        invalid numbers.
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
        """Return which documents of the store contributed to the probability of ``text``, and the share of the LM.

        ``source``: for a seq2seq store, the source of ``text``. Options instead of a text name files, as for ``score``;
        without files, the held-out text of the store is used.
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
    """Open a store for reading, by name, path or URL; None for the only one in this folder.

    Args:
        store: name, path or URL.
        model: a folder, name or hub id, or a causal LM of transformers in memory. Default: $KNNSTORE_MODEL,
            else the shipped wiki-lm. Nothing is loaded until it is needed.
        tokenizer: of a model in memory, for calls that read or return text.
        device, dtype: of an LM to be loaded: cpu, cuda, cuda:1 …; float32, bfloat16 or float16.
        allow_mismatch: only warn (MismatchWarning) if LM, tokenizer or key layer differ from the store's.

    Raises StoreNotFoundError, UnfinishedError or CorruptStoreError.
    """
    return Store(open_store(store), model, tokenizer, device=device, dtype=dtype, allow_mismatch=allow_mismatch)


def warn_of_mismatch(message: str) -> None:
    """Issue a MismatchWarning."""
    warnings.warn(message, MismatchWarning, stacklevel=3)
