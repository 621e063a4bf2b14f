"""Hooks that make an LM's own forward pass return the mixture with a store: on one instance, and gone without a trace.

Nothing of transformers is replaced. ``model(...)``, ``model.generate(...)``, pipelines and wrappers of the model all
end in the instance's ``__call__``, which runs its hooks; so greedy search, sampling, beams, caches and batches need no
code here.
"""

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from knnstore.errors import CorruptStoreError, ModelError, NumericsError
from knnstore.lm.keylayer import KeyPoint, module_input
from knnstore.lm.loading import task_of_config
from knnstore.neighbours import ABSENT, Neighbours

# Numbers of p_kNN that are held at once: 256 MB in float32.
_MOST_PROBABILITIES = 2**26

Search = Callable[[Any], Neighbours]
"""Float32 queries (n, d) to their neighbours."""


F = TypeVar("F", bound=Callable[..., Any])


def _as_it_is(function: F) -> F:
    """A hook that torch.compile runs but doesn't compile: it leaves torch to search."""
    plain: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return plain


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one forward pass asked of the store: n positions of its batch, in order.

    ``neighbours`` of each. ``log_lm`` and ``log_p``: float32 (n, vocabulary) on the LM's device, ln p of every token by
    the LM alone and by the mixture.
    """

    neighbours: Neighbours
    log_lm: torch.Tensor
    log_p: torch.Tensor


class MixtureHooks:
    """While attached, the logits of ``model`` are ln p of the mixture plus the offset of the LM's own logits, float32.

    p = λ p_kNN + (1 − λ) p_LM (Khandelwal et al. 2020, eq. 3). The offset is logsumexp of the LM's logits, a constant
    for each position: penalties, which depend on the sign of a logit, then act as on the LM, and at λ = 0 the logits
    are the LM's, bit for bit. The store is asked for the positions whose logits are returned and that aren't padding;
    for those that find nothing, and for padding, the logits are the LM's. A ``loss`` is the mixture's. Several threads
    may run the model at once.

    ``on_step`` is called, in the thread of the forward pass, after each; None costs nothing. With ``only_here`` the
    passes of other threads stay the LM's own.
    """

    def __init__(
        self,
        model: Any,
        point: KeyPoint,
        search: Search,
        *,
        lambda_: float,
        temperature: float,
        on_step: Callable[[Step], None] | None = None,
        only_here: bool = False,
    ) -> None:
        self._search = search
        self._lambda = lambda_
        self._temperature = temperature
        self._on_step = on_step
        self._thread = threading.get_ident() if only_here else None
        self._path = point.path
        self._detached = False
        self._signature = inspect.signature(model.forward)
        self._running = threading.local()  # .states: what the forward pass of this thread has captured so far
        self._decodes = task_of_config(model.config) == "seq2seq"
        if point.module is None:
            body = model.get_decoder() if self._decodes else model.base_model
            capture = body.register_forward_hook(self._capture_output)
        else:
            capture = point.module.register_forward_pre_hook(self._capture_input, with_kwargs=True)
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            capture,
            model.register_forward_hook(self._end, with_kwargs=True),
        ]
        if not only_here:
            # code that torch.compile has made of the model goes past the hooks of its inner modules
            torch.compiler.reset()

    def detach(self) -> None:
        """Remove the hooks; harmless if they are gone."""
        self._detached = True  # for what holds the hooks elsewhere: compiled code, modules quantised in place
        while self._handles:
            self._handles.pop().remove()

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise ModelError(
            "a model can't be copied or pickled while a store is attached to it: call detach() first, and attach the "
            "store again afterwards"
        )

    @_as_it_is
    def _begin(self, model: torch.nn.Module, _args: tuple[Any, ...]) -> None:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise ModelError(
                f"{type(model).__name__} can't be traced while a store is attached to it: a trace makes no searches; "
                "call detach() first"
            )
        if not self._detached and self._thread in (None, threading.get_ident()):
            self._running.states = []

    @_as_it_is
    def _capture_input(
        self, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        if (states := getattr(self._running, "states", None)) is not None:
            states.append(module_input(args, kwargs or {}))

    @_as_it_is
    def _capture_output(self, _module: torch.nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if (states := getattr(self._running, "states", None)) is not None:
            states.append(output[0])

    @_as_it_is
    def _end(self, model: Any, args: tuple[Any, ...], *kwargs_and_output: Any) -> Any:
        states, self._running.states = getattr(self._running, "states", None), None
        *before, output = kwargs_and_output
        # torch leaves the keyword arguments out where another thread has detached since this pass began
        if states is None or not before:
            return output
        kwargs: dict[str, Any] = before[0]
        given = self._arguments(args, kwargs)
        loss, logits = _loss_and_logits(output, given)
        if not states:
            raise ModelError(
                f"{self._path} was not seen in a pass of {type(model).__name__}: if the model was compiled or changed "
                "after the store was attached, attach the store again"
            )
        if len(states) > 1:
            raise ModelError(
                f"{self._path} ran {len(states)} times in one pass of {type(model).__name__}: its input is no key; "
                "make the store with --key hidden"
            )
        # some families flatten batch and length before the feed-forward block
        keys = states[0].detach().float().reshape(len(logits), -1, states[0].shape[-1])
        mask = given.get("decoder_attention_mask" if self._decodes else "attention_mask")
        asked = _kept(_not_padding(mask, keys), given)
        mixed = self._mix(_kept(keys, given), logits, asked)
        if loss is not None:
            if self._decodes:
                loss = loss - _cross_entropy(logits, given["labels"]) + _cross_entropy(mixed, given["labels"])
            else:
                loss = _loss_of_mixture(model, loss, logits, mixed, given)
        return _replaced(output, loss, mixed)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The forward pass' arguments by name."""
        arguments = self._signature.bind(*args, **kwargs).arguments
        return arguments | kwargs  # what its catch-all took, too

    def _mix(self, keys: torch.Tensor, logits: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Logits of the mixture, shaped like ``logits`` (b, n, vocabulary), for keys (b, n, d) and bool (b, n)."""
        if not torch.isfinite(keys[asked]).all():
            raise NumericsError(f"a key isn't finite: the LM overflowed in {logits.dtype}; load it in float32")
        vocabulary = logits.shape[-1]
        flat_keys, flat_logits, flat_asked = keys.flatten(0, 1), logits.flatten(0, 1), asked.flatten()
        size = max(1, _MOST_PROBABILITIES // vocabulary)
        parts = [
            self._mix_block(flat_keys[rows], flat_logits[rows], flat_asked[rows])
            for rows in (slice(begin, begin + size) for begin in range(0, len(flat_keys), size))
        ]
        return torch.cat(parts).reshape(logits.shape) if parts else logits.float()

    def _mix_block(self, keys: torch.Tensor, logits: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        logits = logits.float()  # (n, vocabulary)
        lines = torch.nonzero(asked)[:, 0]
        neighbours = self._search(np.ascontiguousarray(keys[lines].cpu().numpy()))
        p_knn, found = store_distribution(neighbours, logits.shape[-1], self._temperature, logits.device)
        lines = lines.to(logits.device)
        # a weight of 0 leaves a line to the LM: ln 0 + … = −inf is nothing in logaddexp
        weight = torch.zeros(len(logits), device=logits.device).index_copy(0, lines, found * self._lambda)
        offset = logits.logsumexp(dim=-1, keepdim=True)  # (n, 1)
        store = torch.full_like(logits, -torch.inf, requires_grad=False)
        store[lines] = (p_knn * self._lambda).log() + offset[lines]
        mixed = torch.logaddexp(store, logits + torch.log1p(-weight)[:, None])
        if self._on_step is not None:
            self._on_step(Step(neighbours, logits[lines].log_softmax(dim=-1), mixed[lines].log_softmax(dim=-1)))
        return mixed


def _loss_and_logits(output: Any, given: dict[str, Any]) -> tuple[torch.Tensor | None, torch.Tensor]:
    if isinstance(output, tuple):
        return (output[0], output[1]) if given.get("labels") is not None else (None, output[0])
    return output.loss, output.logits


def _replaced(output: Any, loss: torch.Tensor | None, logits: torch.Tensor) -> Any:
    """``output`` with another loss and other logits: a tuple as a new one, a ModelOutput in place."""
    if isinstance(output, tuple):
        return (logits, *output[1:]) if loss is None else (loss, logits, *output[2:])
    if loss is not None:
        output.loss = loss
    output.logits = logits
    return output


def _kept(of_positions: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    """Of (batch, length, …) the positions whose logits the pass returns, as ``logits_to_keep`` says."""
    keep = given.get("logits_to_keep", 0)
    return of_positions[:, slice(-keep, None) if isinstance(keep, int) else keep.to(of_positions.device)]


def _not_padding(mask: Any, keys: torch.Tensor) -> torch.Tensor:
    """Bool (batch, length): the positions that hold text. A mask of other than two dimensions tells nothing of it."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device)
    # with a cache the mask covers what is in it as well; this pass is fed the last positions
    return mask[:, -keys.shape[1] :].bool().to(keys.device)


def _loss_of_mixture(
    model: Any, loss: torch.Tensor, logits: torch.Tensor, mixed: torch.Tensor, given: dict[str, Any]
) -> torch.Tensor:
    """The LM's loss with its cross-entropy exchanged for the mixture's; what else is in it (of experts, say) stays."""
    named = ("labels", "num_items_in_batch", "ignore_index", "shift_labels")
    settings = {name: given[name] for name in named if name in given} | {"vocab_size": logits.shape[-1]}
    ours: torch.Tensor = model.loss_function(logits=mixed, **settings)
    theirs: torch.Tensor = model.loss_function(logits=logits, **settings)
    return loss - theirs + ours


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of encoder-decoder models: mean −ln p of the labels that aren't −100, position by position."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device))


def store_distribution(
    neighbours: Neighbours, vocabulary: int, temperature: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """p_kNN of every token, float32 (n, vocabulary), 0 where nothing was found; and whether anything was, (n,).

    p_kNN(y) = Σ_{i: v_i = y} softmax_i(−d_i / T) (Khandelwal et al. 2020, eq. 2). Raises CorruptStoreError for a token
    that the LM doesn't have.
    """
    largest = int(neighbours.values.max(initial=ABSENT))
    if largest >= vocabulary:
        raise CorruptStoreError(f"the store holds token {largest}, the LM has {vocabulary}: run 'knnstore verify'")
    found = torch.from_numpy(np.ascontiguousarray(neighbours.found)).to(device)
    distances = torch.from_numpy(neighbours.distances).to(device)
    weights = torch.softmax(-distances / temperature, dim=-1)  # exp(−inf) = 0 where absent
    weights = torch.where(found[:, None], weights, torch.zeros_like(weights))
    values = torch.from_numpy(neighbours.values).to(device).clamp(min=0)
    p_knn = torch.zeros(len(neighbours), vocabulary, device=device).scatter_add_(1, values, weights)
    return p_knn, found
