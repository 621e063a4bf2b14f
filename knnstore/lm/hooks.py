"""Hooks that make the forward pass of one LM instance return the mixture with a store, and can be removed completely.

Nothing in transformers is replaced. ``model(...)``, ``model.generate(...)``, pipelines and wrappers of the model all
call the instance's ``__call__``, which runs its hooks; greedy search, sampling, beams, caches and batches therefore
need no code here.
"""

import inspect
import threading
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

import torch
from transformers.cache_utils import Cache

from knnstore.errors import ModelError
from knnstore.lm.keylayer import KeyPoint, module_input
from knnstore.lm.loading import task_of_config
from knnstore.lm.reading import ForwardPass
from knnstore.wording import option

Mix = Callable[[ForwardPass], torch.Tensor]
"""Maps a forward pass to the logits of the mixture, float32 (b, n, V)."""

_OWNERS = count()

F = TypeVar("F", bound=Callable[..., Any])


def _as_it_is(function: F) -> F:
    """Exclude a hook, which searches outside torch, from compilation by torch.compile."""
    plain: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return plain


class MixtureHooks:
    """While attached, replaces the logits of ``model`` by ``mix`` of its keys and its own logits.

    ``mix`` is called in the thread of each forward pass, for the positions whose logits are returned. A ``loss`` is
    recomputed from the new logits. Several threads may run the model at once; with ``only_here``, passes in other
    threads aren't changed.
    """

    def __init__(
        self,
        model: Any,
        point: KeyPoint,
        mix: Mix,
        *,
        only_here: bool = False,
    ) -> None:
        self._mix = mix
        self._thread = threading.get_ident() if only_here else None
        self._owner = next(_OWNERS)
        self._path = point.path
        self._detached = False
        self._signature = inspect.signature(model.forward)
        self._running = threading.local()  # .states: captured so far by the forward pass of this thread
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
            # existing code of torch.compile would bypass the hooks of inner modules
            torch.compiler.reset()

    def detach(self) -> None:
        """Remove the hooks, if they are still there."""
        self._detached = True  # for hooks held elsewhere, in compiled code or modules quantised in place
        while self._handles:
            self._handles.pop().remove()

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise ModelError(
            "a model can't be copied or pickled while a store is attached to it: call detach() first and attach the "
            "store again afterwards"
        )

    @_as_it_is
    def _begin(self, model: torch.nn.Module, _args: tuple[Any, ...]) -> None:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise ModelError(
                f"{type(model).__name__} can't be traced while a store is attached to it: a trace can't search; "
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
        # torch omits the keyword arguments if another thread has detached since this pass began
        if states is None or not before:
            return output
        kwargs: dict[str, Any] = before[0]
        given = self._arguments(args, kwargs)
        loss, logits = _loss_and_logits(output, given)
        if not states:
            raise ModelError(
                f"{self._path} was not called in a pass of {type(model).__name__}: if the model was compiled or "
                "changed after the store was attached, attach the store again"
            )
        if len(states) > 1:
            raise ModelError(
                f"{self._path} ran {len(states)} times in one pass of {type(model).__name__}: its input can't be a "
                f"key; make the store with {option('key', 'hidden')}"
            )
        # some families flatten batch and length before the feed-forward block
        keys = states[0].detach().float().reshape(len(logits), -1, states[0].shape[-1])
        mixed = self._mix(self._forward_pass(model, keys, given, output))
        if loss is not None:
            if self._decodes:
                loss = loss - _cross_entropy(logits, given["labels"]) + _cross_entropy(mixed, given["labels"])
            else:
                loss = _loss_of_mixture(model, loss, logits, mixed, given)
        return _replaced(output, loss, mixed)

    def _forward_pass(self, model: Any, keys: torch.Tensor, given: dict[str, Any], output: Any) -> ForwardPass:
        mask, ids = (
            given.get(f"decoder_{name}" if self._decodes else name) for name in ("attention_mask", "input_ids")
        )
        if ids is None and self._decodes and given.get("labels") is not None:
            ids = model.prepare_decoder_input_ids_from_labels(given["labels"])
        keep = given.get("logits_to_keep", 0)
        places = torch.arange(keys.shape[1], device=keys.device)
        return ForwardPass(
            keys=keys,
            logits=_loss_and_logits(output, given)[1],
            kept=places[slice(-keep, None) if isinstance(keep, int) else keep.to(keys.device)],
            # a mask with other than two dimensions doesn't describe padding
            mask=mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None,
            ids=ids,
            places=given.get("position_ids"),
            cache=_cache_of(output),
            owner=self._owner,
        )

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the forward pass by name."""
        arguments = self._signature.bind(*args, **kwargs).arguments
        return arguments | kwargs  # including those of its catch-all


def _loss_and_logits(output: Any, given: dict[str, Any]) -> tuple[torch.Tensor | None, torch.Tensor]:
    if isinstance(output, tuple):
        return (output[0], output[1]) if given.get("labels") is not None else (None, output[0])
    return output.loss, output.logits


def _replaced(output: Any, loss: torch.Tensor | None, logits: torch.Tensor) -> Any:
    """Return ``output`` with a new loss and logits: a tuple is copied, a ModelOutput changed in place."""
    if isinstance(output, tuple):
        return (logits, *output[1:]) if loss is None else (loss, logits, *output[2:])
    if loss is not None:
        output.loss = loss
    output.logits = logits
    return output


def _cache_of(output: Any) -> Any:
    """Return the cache that a pass leaves for the next, or the states of a recurrent model; None without either."""
    if isinstance(output, tuple):
        return next((part for part in output if isinstance(part, Cache)), None)
    kinds = ("past_key_values", "cache_params", "state", "mems")
    return next((output[name] for name in kinds if output.get(name) is not None), None)


def _loss_of_mixture(
    model: Any, loss: torch.Tensor, logits: torch.Tensor, mixed: torch.Tensor, given: dict[str, Any]
) -> torch.Tensor:
    """Replace the cross-entropy in the LM's loss by that of the mixture, keeping other terms, such as experts'."""
    named = ("labels", "num_items_in_batch", "ignore_index", "shift_labels")
    settings = {name: given[name] for name in named if name in given} | {"vocab_size": logits.shape[-1]}
    of_mixture: torch.Tensor = model.loss_function(logits=mixed, **settings)
    of_lm: torch.Tensor = model.loss_function(logits=logits, **settings)
    return loss - of_lm + of_mixture


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of encoder-decoder models: mean −ln p of the labels that aren't −100."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device))
