"""Tokens one by one, while an LM writes: generation in a thread of its own, and text from tokens as they come."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from knnstore.errors import UsageError
from knnstore.lm.asked import asked_otherwise, asked_penalties, asked_sampling, without
from knnstore.lm.loading import LoadedModel

T = TypeVar("T")

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what part of a character decodes to
_PROMPT_TOKENS = 8
_CUTOFFS = {
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn: the most probable if ``temperature`` is 0, else from p^(1/temperature).

    ``top_p`` keeps the most probable tokens that hold so much of p together, ``top_k`` so many (0: all). ``seed``,
    from −2⁶³ to 2⁶⁴ − 1, makes the draw repeatable, whatever other threads draw. ``cutoffs``: names and values of the
    other cutoffs of transformers' ``generate``, such as ``("min_p", 0.1)``. Raises UsageError for other numbers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    cutoffs: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"sampling temperature {self.temperature:g}: give 0 (the most probable token) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p:g}: give a share above 0, at most 1")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k}: give a number of tokens, or 0 for all")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise UsageError(f"seed {self.seed}: give a whole number from -{2**63} to {2**64 - 1}")
        if unknown := [name for name, _ in self.cutoffs if name not in _CUTOFFS]:
            raise UsageError(f"cutoff {unknown[0]!r}: give {', '.join(_CUTOFFS)}")

    @classmethod
    def asked_by(cls, model: Any) -> "Sampling":
        """As the model's generation_config.json asks for; the most probable token if it asks for nothing."""
        asked = asked_sampling(model)
        if not asked:
            return cls()
        own = {name: asked.pop(name) for name in ("temperature", "top_p", "top_k") if name in asked}
        return cls(**own, cutoffs=tuple(asked.items()))


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws the token and rules out all others.

    The generator is its own: torch's default one belongs to the caller, and is shared by all threads.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._temperature = sampling.temperature
        self._generator = None
        if sampling.seed is not None:
            self._generator = torch.Generator(device).manual_seed(sampling.seed)
        self._cutoffs = []
        if sampling.top_k:
            self._cutoffs.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._cutoffs.append(TopPLogitsWarper(sampling.top_p))
        self._cutoffs += [_CUTOFFS[name](value) for name, value in sampling.cutoffs]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See transformers."""
        scores = scores.double()
        # the largest is 0, so that the smallest temperature leaves it, and no number overflows
        scores = (scores - scores.amax(dim=-1, keepdim=True)) / self._temperature
        for cutoff in self._cutoffs:
            scores = cutoff(input_ids, scores)
        token = torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


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
    loaded: LoadedModel,
    ids: list[int],
    most: int,
    sampling: Sampling,
    emit: Callable[[int], None],
    *,
    penalties: bool = False,
) -> None:
    """Call ``emit`` with up to ``most`` tokens that follow ``ids``, each as soon as it is chosen, EOS not among them.

    ``penalties``: whether to apply those, and the bans, that the model's generation_config.json asks for. A window that
    is full is begun again with its latter half. Of an encoder-decoder model ``ids`` are its source, and it writes no
    more than a window. Raises UsageError for a source that is longer.
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

    arguments = without(asked_otherwise(model) if penalties else asked_otherwise(model) | asked_penalties(model))
    if sampling.temperature > 0:
        arguments["logits_processor"] = LogitsProcessorList([_Draw(sampling, loaded.device)])
    if loaded.task == "seq2seq":
        if len(ids) > context:
            raise UsageError(f"the source has {len(ids):,} tokens, and the LM reads {context:,}: split it")
        _write_window(loaded, ids, min(left, context - 1), arguments, take)
        return
    while left > 0 and not over:
        window = ids if len(ids) < context else ids[-max(1, context // 2) :]
        _write_window(loaded, window, min(left, context - len(window)), arguments, take)


def _write_window(
    loaded: LoadedModel, ids: list[int], most: int, arguments: dict[str, Any], take: Callable[[int], None]
) -> None:
    tokens = torch.tensor([ids], device=loaded.device)
    loaded.model.generate(
        tokens,
        **arguments,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=most,
        pad_token_id=loaded.pad,  # one text needs none, and transformers would complain
        streamer=_Tokens(take),
        # the token is drawn by a processor, so that these are not the model's either
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
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
