"""Stream tokens while an LM generates them in a separate thread, and decode them to text."""

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

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # result of decoding an incomplete character
_PROMPT_TOKENS = 8
_CUTOFFS = {
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: the most probable if ``temperature`` is 0, else sampled from p^(1/temperature).

    ``top_p``: probability mass of the most probable tokens to sample from. ``top_k``: their number (0: all). ``seed``:
    from −2⁶³ to 2⁶⁴ − 1, makes sampling reproducible, regardless of other threads. ``cutoffs``: names and values of
    other cutoffs of transformers' ``generate``, such as ``("min_p", 0.1)``. Raises UsageError for invalid numbers.
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
            raise UsageError(f"top-p {self.top_p:g}: give a number above 0 and at most 1")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k}: give a number of tokens, or 0 for all")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise UsageError(f"seed {self.seed}: give an integer from -{2**63} to {2**64 - 1}")
        if unknown := [name for name, _ in self.cutoffs if name not in _CUTOFFS]:
            raise UsageError(f"cutoff {unknown[0]!r}: give {', '.join(_CUTOFFS)}")

    @classmethod
    def asked_by(cls, model: Any) -> "Sampling":
        """Return the sampling requested by the model's generation_config.json; by default the most probable token."""
        asked = asked_sampling(model)
        if not asked:
            return cls()
        own = {name: asked.pop(name) for name in ("temperature", "top_p", "top_k") if name in asked}
        return cls(**own, cutoffs=tuple(asked.items()))


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Samples the token and excludes all others.

    It has its own generator, because torch's default one belongs to the caller and is shared by all threads.
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
        # the maximum is 0 for any temperature, so that nothing overflows
        scores = (scores - scores.amax(dim=-1, keepdim=True)) / self._temperature
        for cutoff in self._cutoffs:
            scores = cutoff(input_ids, scores)
        token = torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


class _Tokens(BaseStreamer):  # type: ignore[misc]
    """Forwards each new token; the first call passes the prompt, which is skipped."""

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
    """Call ``emit`` with up to ``most`` tokens that continue ``ids``, each as soon as it is chosen, except EOS.

    ``penalties``: whether to apply the penalties and bans of the model's generation_config.json. When the window is
    full, generation continues with its second half as context. For an encoder-decoder model, ``ids`` are the source and
    the output is at most one window. Raises UsageError for a longer source.
    """
    model, context = loaded.model, loaded.longest_context
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    ids, left, over = list(ids), most, False
    # an encoder-decoder model may begin with special tokens (BART)
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
            raise UsageError(f"the source has {len(ids):,} tokens, but the LM reads at most {context:,}: split it")
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
        pad_token_id=loaded.pad,  # unused for one text, but transformers would warn
        streamer=_Tokens(take),
        # the token is sampled by a processor, so the model's own settings must not apply
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
    )


class TextStream:
    """Decodes tokens to text incrementally, holding text back until its characters are complete."""

    def __init__(self, loaded: LoadedModel, ids: list[int]) -> None:
        # some tokenizers decode the first token of a text differently, so a few tokens of the prompt are included
        self._ids = list(ids[-_PROMPT_TOKENS:])
        self._loaded = loaded
        self._begin, self._shown = 0, len(self._ids)

    def add(self, token: int) -> str:
        """Return the text completed by ``token``."""
        self._ids.append(token)
        known = self._loaded.decode(self._ids[self._begin : self._shown])
        text = self._loaded.decode(self._ids[self._begin :])[len(known) :]
        if text.endswith(_UNFINISHED):
            return ""
        self._begin, self._shown = self._shown, len(self._ids)
        return text


class _Stopped(Exception):  # noqa: N818 - a signal, not an error
    """Ends the producer when the consumer has stopped."""


def in_thread(produce: Callable[[Callable[[T], None]], None]) -> Iterator[T]:
    """Iterate over what ``produce(emit)`` emits in a separate thread, which ends when the iterator is closed.

    Errors of the thread are raised here.
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
