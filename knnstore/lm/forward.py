"""Run windows through an LM for their keys, stopping once these are computed."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch

from knnstore.arrays import Int64
from knnstore.errors import ModelError, OutOfMemoryError
from knnstore.lm.batching import Memory, find_padding
from knnstore.lm.causality import require_causal
from knnstore.lm.keylayer import KeyPoint, find_key_point, module_input
from knnstore.lm.loading import LoadedModel, load_model
from knnstore.lm.sources import SourceBatch, SourceReader, batches_with_sources
from knnstore.lm.spec import LmFacts, LmSpec
from knnstore.outofmemory import memory_errors
from knnstore.windows import ROWS, Padding, Windows
from knnstore.wording import option

Result = TypeVar("Result")
InputBatch = tuple[Windows, Int64, SourceBatch | None]
"""Windows, their padded ids (windows, width) and, for an encoder-decoder model, the sources."""

_SOURCE = 64  # tokens of the source used to test an encoder-decoder model


class _KeyReached(Exception):  # noqa: N818 - a signal, not an error
    """Stops a forward pass once the key is computed, before the last feed-forward block and the head."""


class KeyModel:
    """A loaded LM with its key point.

    For an encoder-decoder model, ``ids`` are the input of the decoder and ``source`` that of the encoder.
    """

    def __init__(self, loaded: LoadedModel, layer: str) -> None:
        self.loaded = loaded
        self.point: KeyPoint = find_key_point(loaded.model, layer)
        self._decodes = loaded.task == "seq2seq"
        self._body = loaded.model if self._decodes else loaded.model.base_model
        self._keeps_logits = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters
        self._memory = Memory(loaded.model)
        self._paddings: dict[int, Padding] = {}

    @property
    def dimension(self) -> int:
        """Return the dimension of a key."""
        ids = np.zeros((1, 1), np.int64)
        return int(self.keys(ids, SourceBatch(ids, ids + 1) if self._decodes else None).shape[-1])

    def padding(self, context: int) -> Padding:
        """Return how windows of up to ``context`` positions may share a batch without changing their keys."""
        if context not in self._paddings:
            embedded = min(self.loaded.readable, self.loaded.writable)
            bos = self.loaded.bos
            source = np.random.default_rng(1).integers(0, embedded, min(_SOURCE, context)) if self._decodes else None

            def keys(ids: Int64) -> Any:
                if source is None:
                    return self.keys(ids).numpy()
                width = ids.shape[1] if ids.shape[1] == context else len(source)
                return self.keys(ids, SourceBatch.of([source] * len(ids), self.loaded.pad, width)).numpy()

            with memory_errors(f"the LM's first passes over windows of {context} tokens"):
                self._paddings[context] = find_padding(
                    keys, self.loaded.model, context=context, vocabulary=embedded, filler=bos, dtype=self.loaded.dtype
                )
        return self._paddings[context]

    @torch.inference_mode()
    def keys(self, ids: Int64, source: SourceBatch | None = None) -> torch.Tensor:
        """Return the keys of token ids (batch, length): float32 (batch, length, d) on the CPU.

        The key of position p is the state after reading ids[:, :p + 1]. Pad on the right: earlier positions of a
        causal LM don't see the padding.
        """
        arguments = self._arguments(ids, source)
        if self.point.module is None:
            if self._decodes:
                return self.keys_and_logits(ids, 0, source)[0]
            hidden: torch.Tensor = self._body(**arguments).last_hidden_state
            return hidden.float().cpu()
        with self._captured(stop=True) as captured, suppress(_KeyReached):
            self._body(**arguments)
        return self._shaped(captured, ids)

    @torch.inference_mode()
    def keys_and_logits(self, ids: Int64, first: int, source: SourceBatch | None = None) -> tuple[torch.Tensor, Any]:
        """Return keys and logits of positions from ``first`` on of token ids (batch, length).

        The keys are float32 (batch, length − first, d) on the CPU; the logits (batch, length − first, vocabulary) are
        the unchanged output of the model on its device.
        """
        arguments = self._arguments(ids, source)
        if self._keeps_logits:
            arguments["logits_to_keep"] = ids.shape[1] - first
        if self.point.module is None:
            output = self.loaded.model(**arguments, output_hidden_states=True)
            states = output.decoder_hidden_states if self._decodes else output.hidden_states
            keys = states[-1].float().cpu()
        else:
            with self._captured(stop=False) as captured:
                output = self.loaded.model(**arguments)
            keys = self._shaped(captured, ids)
        return keys[:, first:], output.logits[:, -(ids.shape[1] - first) :]

    def _arguments(self, ids: Int64, source: SourceBatch | None) -> dict[str, Any]:
        """Return the arguments of a forward pass without a cache, and reset the LM's memory of earlier passes."""
        self._memory.restore()
        tokens = torch.from_numpy(ids).to(self.loaded.device)
        if not self._decodes:
            return {"input_ids": tokens, "use_cache": False}
        assert source is not None, "an encoder-decoder model reads a source"
        return source.arguments(self.loaded.device) | {"decoder_input_ids": tokens, "use_cache": False}

    @contextmanager
    def _captured(self, *, stop: bool) -> Iterator[list[torch.Tensor]]:
        """Capture the inputs of the key point's module in this thread within; with ``stop``, end the pass there."""
        captured: list[torch.Tensor] = []
        thread = threading.get_ident()

        # kwargs are missing if another thread's hook is removed while this thread's pass calls it
        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            if threading.get_ident() != thread:
                return
            captured.append(module_input(args, kwargs or {}))
            if stop:
                raise _KeyReached

        assert self.point.module is not None
        handle = self.point.module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield captured
        finally:
            handle.remove()

    def _shaped(self, captured: list[torch.Tensor], ids: Int64) -> torch.Tensor:
        if len(captured) != 1:
            raise ModelError(
                f"{self.point.path} ran {len(captured)} times in one pass of {self.loaded.identity.name}: "
                f"its input can't be a key; use {option('key', 'hidden')}"
            )
        # some families (older OPT) flatten batch and length before the feed-forward block
        return captured[0].float().reshape(*ids.shape, -1).cpu()


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch use one thread within, because the last bit of a small product depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def even_threads(lines: int, width: int) -> Iterator[None]:
    """Make torch use a number of threads within that divides a batch into equal shares of lines or blocks of rows.

    Rows left over at the end of a thread's share are multiplied by another kernel, which rounds differently.
    """
    blocks, rest = divmod(lines * width, ROWS)
    threads = before = torch.get_num_threads()
    while lines % threads and (rest or blocks % threads):
        threads -= 1
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def key_model(spec: LmSpec) -> KeyModel:
    """Return the LM of ``spec`` with its key point, made once per process. Raises ModelError if it isn't causal."""
    model = KeyModel(load_model(spec), spec.layer)
    require_causal(model)
    return model


def describe(spec: LmSpec) -> LmFacts:
    """Load the LM of ``spec`` and describe it."""
    model = key_model(spec)
    loaded = model.loaded
    return LmFacts(
        identity=loaded.identity,
        layer=model.point.layer,
        path=model.point.path,
        dimension=model.dimension,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        default_context=loaded.default_context,
        longest_context=loaded.longest_context,
        dtype=loaded.dtype,
        device=str(loaded.device),
    )


def padded_ids(windows: Windows, tokens: Any, bos: int, padding: Padding = "ladder") -> Int64:
    """Return the input of a batch of windows: int64 (windows, width), padded on the right with BOS.

    ``tokens(document, begin, end)`` returns the ids of tokens ``[begin, end)`` of a document.
    """
    ids = np.full((len(windows), int(windows.widths(padding).max())), bos, np.int64)
    columns = zip(windows.document, windows.start, windows.length, strict=True)
    for line, (document, start, length) in enumerate(columns):
        # stream position p > 0 is token p − 1 of the document; position 0 is BOS
        text = tokens(int(document), max(int(start) - 1, 0), int(start + length) - 1)
        ids[line, length - len(text) : length] = text
    return ids


def input_batches(
    model: KeyModel,
    windows: Windows,
    tokens: Any,
    batch_tokens: int,
    sources: SourceReader | None,
    *,
    padding: Padding | None = None,
) -> Iterator[InputBatch]:
    """Yield batches of windows with their padded ids and, for an encoder-decoder model, the sources.

    ``padding``: None for the padding that the LM allows.
    """
    padding = padding or model.padding(windows.context)
    bos, pad, longest = model.loaded.bos, model.loaded.pad, model.loaded.longest_context
    if sources is None:
        for batch in windows.batches(batch_tokens, padding, torch.get_num_threads()):
            yield batch, padded_ids(batch, tokens, bos, padding), None
        return
    for batch, texts, width in batches_with_sources(windows, batch_tokens, sources, padding, longest):
        yield batch, padded_ids(batch, tokens, bos, padding), SourceBatch.of(texts, pad, width)


def window_keys(
    model: KeyModel,
    windows: Windows,
    tokens: Any,
    batch_tokens: int,
    sources: SourceReader | None = None,
    *,
    padding: Padding | None = None,
) -> Iterator[tuple[Int64, Any]]:
    """Yield the keys of all scored positions by batch: rows int64 (n,) and keys float32 (n, d).

    ``padding``: None for the padding that the LM allows.
    """

    def keys_of(batch: InputBatch) -> torch.Tensor:
        _, ids, source = batch
        with nullcontext() if padding == "longest" else even_threads(*ids.shape):
            return model.keys(ids, source)

    for whole in input_batches(model, windows, tokens, batch_tokens, sources, padding=padding):
        for (batch, _, _), keys in in_memory(whole, keys_of):
            rows, lines, positions = scored_positions(batch)
            yield rows, keys[lines, positions].numpy()


def in_memory(batch: InputBatch, passed: Callable[[InputBatch], Result]) -> Iterator[tuple[InputBatch, Result]]:
    """Yield a batch and the result of ``passed`` on it, halving it repeatedly if memory is insufficient.

    Raises OutOfMemoryError if memory is insufficient for a single window.
    """
    windows, ids, source = batch
    result = _passed(batch, passed, alone=len(windows) == 1)
    if result is not None:
        yield batch, result
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(windows) // 2
    for half in (slice(0, middle), slice(middle, None)):
        sources = None if source is None else SourceBatch(source.ids[half], source.mask[half])
        yield from in_memory((windows.select(half), ids[half], sources), passed)


def _passed(batch: InputBatch, passed: Callable[[InputBatch], Result], *, alone: bool) -> Result | None:
    """Return the result of a pass, or None without enough memory; separate, so that a failed pass holds no memory."""
    lines, length = batch[1].shape
    try:
        with memory_errors(f"the LM's pass over {lines} windows of {length} tokens"):
            return passed(batch)
    except OutOfMemoryError:
        if alone:
            raise
        return None


def scored_positions(batch: Windows) -> tuple[Int64, Int64, Int64]:
    """Return row, batch line and input position of all scored positions of a batch, each int64 (n,), by line."""
    lines = np.repeat(np.arange(len(batch)), batch.scored)
    within = np.arange(len(lines)) - np.repeat(np.cumsum(batch.scored) - batch.scored, batch.scored)
    positions = (batch.length - batch.scored)[lines] + within
    return batch.row[lines] + within, lines, positions
