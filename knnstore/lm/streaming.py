"""Tokens one by one, while an LM writes: generation in a thread of its own, and text from tokens as they come."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers.generation.streamers import BaseStreamer

from knnstore.errors import UsageError
from knnstore.lm.loading import LoadedModel

T = TypeVar("T")

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what part of a character decodes to
_PROMPT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn: the most probable if ``temperature`` is 0, else from p^(1/temperature).

    ``top_p`` keeps the most probable tokens that hold so much of p together, ``top_k`` so many (0: all). ``seed``
    makes the draw repeatable.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"sampling temperature {self.temperature:g}: give 0 (the most probable token) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p:g}: give a share above 0, at most 1")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k}: give a number of tokens, or 0 for all")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``generate``."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


class _Tokens(BaseStreamer):  # type: ignore[misc]
    """Hands on each new token; the first call brings the prompt."""

    def __init__(self, emit: Callable[[int], None]) -> None:
        self._emit = emit
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """See transformers."""
        if self._prompt_seen:
            self._emit(int(value.flatten()[0]))
        self._prompt_seen = True

    def end(self) -> None:
        """See transformers."""


def write_tokens(
    loaded: LoadedModel, ids: list[int], most: int, sampling: Sampling, emit: Callable[[int], None]
) -> None:
    """Call ``emit`` with up to ``most`` tokens that follow ``ids``, each as soon as it is chosen, EOS not among them.

    A window that is full is begun anew with its latter half. Of an encoder-decoder model ``ids`` are its source, and
    it writes no more than a window. Raises UsageError for a source that is longer.
    """
    model, context = loaded.model, loaded.longest_context
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    ids, left, over = list(ids), most, False
    # what an encoder-decoder model begins with (BART) is no text
    unspoken = set(loaded.tokenizer.all_special_ids) if loaded.task == "seq2seq" else set()

    def take(token: int) -> None:
        nonlocal left, over
        over = token in ends
        left -= 1
        if not over and token not in unspoken:
            ids.append(token)
            emit(token)

    with torch.random.fork_rng(enabled=sampling.seed is not None):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        if loaded.task == "seq2seq":
            if len(ids) > context:
                raise UsageError(f"the source has {len(ids):,} tokens, and the LM reads {context:,}: split it")
            _write_window(loaded, ids, min(left, context - 1), sampling, take)
            return
        while left > 0 and not over:
            window = ids if len(ids) < context else ids[-max(1, context // 2) :]
            _write_window(loaded, window, min(left, context - len(window)), sampling, take)


def _write_window(
    loaded: LoadedModel, ids: list[int], most: int, sampling: Sampling, take: Callable[[int], None]
) -> None:
    tokens = torch.tensor([ids], device=loaded.device)
    loaded.model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=most,
        pad_token_id=loaded.pad,  # one text needs none, and transformers would complain
        num_beams=1,
        streamer=_Tokens(take),
        **sampling.arguments,
    )


class TextStream:
    """Text from tokens as they come: what a token adds, held back until its characters are whole."""

    def __init__(self, loaded: LoadedModel, ids: list[int]) -> None:
        # some tokenizers write a text's first token in another way, so a few of the prompt's come along
        self._ids = list(ids[-_PROMPT_TOKENS:])
        self._loaded = loaded
        self._begin, self._told = 0, len(self._ids)

    def add(self, token: int) -> str:
        """The text that ``token`` finishes."""
        self._ids.append(token)
        known = self._loaded.decode(self._ids[self._begin : self._told])
        text = self._loaded.decode(self._ids[self._begin :])[len(known) :]
        if text.endswith(_UNFINISHED):
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return text


class _Stopped(Exception):  # noqa: N818 - a signal, not an error
    """Ends the producer: nobody wants more."""


def in_thread(produce: Callable[[Callable[[T], None]], None]) -> Iterator[T]:
    """Iterate over what ``produce(emit)`` emits in a thread of its own; closing the iterator ends it.

    What it raises is raised here.
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
    closed = threading.Event()

    def put(kind: str, item: Any) -> None:
        while not closed.is_set():
            try:
                return items.put((kind, item), timeout=0.1)
            except queue.Full:
                continue
        raise _Stopped

    def work() -> None:
        try:
            produce(lambda item: put("item", item))
            put("end", None)
        except _Stopped:
            pass
        except BaseException as error:
            if not closed.is_set():
                put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, item = items.get()
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
