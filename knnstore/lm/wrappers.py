"""Find the LM inside a wrapper: the module that all calls of the wrapper end in."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from knnstore.errors import ModelError

_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


def unwrapped(model: Any) -> Any:
    """Return the LM of transformers that ``model`` is or wraps.

    For ``torch.compile``, DataParallel, DistributedDataParallel and adapters of PEFT, this is the inner LM, which both
    the wrapper's forward pass and ``generate`` call. Raises ModelError for any other wrapper, with what to give
    instead, for adapters that insert virtual tokens before the text, and for a sharded LM.
    """
    outer = model
    while not isinstance(model, PreTrainedModel):
        model = _inside(model, outer)
    if any(base.__name__ in _SHARDED for module in model.modules() for base in type(module).__mro__):
        raise ModelError(
            f"{type(outer).__name__} holds a sharded LM, and no process has all of it: load the LM without FSDP"
        )
    if model.get_output_embeddings() is None:
        raise ModelError(_no_lm(model))
    return model


def input_device(model: Any) -> torch.device:
    """Return the device for token ids: that of the LM, or the one where accelerate runs offloaded weights.

    Raises ModelError if the weights aren't loaded at all.
    """
    if model.device.type != "meta":
        return torch.device(model.device)
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    for device in (getattr(hook, "execution_device", None) for hook in hooks):
        if device is not None:
            return torch.device(device)
    raise ModelError(
        f"{type(model).__name__} has no weights, only their shapes (device meta): load it with its weights"
    )


def _inside(model: Any, outer: Any) -> Any:
    """Return the model that a wrapper calls."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"{type(model).__name__} is compiled by TorchScript, to which a store can't be attached: attach it to the "
            "LM that was compiled"
        )
    if (original := getattr(model, "_orig_mod", None)) is not None:
        return original
    if isinstance(model, nn.DataParallel | DistributedDataParallel):
        return model.module
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        if any(config.is_prompt_learning for config in model.peft_config.values()):
            raise ModelError(
                f"{type(model).__name__} puts virtual tokens before the text ({_kinds(model)}), which the store's keys "
                "don't include: attach the store to model.get_base_model()"
            )
        return model.get_base_model()
    if outer is not model:
        raise ModelError(f"{type(outer).__name__} wraps a {type(model).__name__}: {_no_lm(model)}")
    raise ModelError(_no_lm(model))


def _kinds(model: Any) -> str:
    return ", ".join(sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in model.peft_config.values()}))


def _no_lm(model: Any) -> str:
    """Return the message for a model that isn't an LM, with the LM inside it, if there is one."""
    name = type(model).__name__
    parts = model.named_modules() if isinstance(model, nn.Module) else getattr(model, "__dict__", {}).items()
    for path, part in parts:
        if part is not model and isinstance(part, PreTrainedModel) and part.get_output_embeddings() is not None:
            inside = f"its .{path} ({type(part).__name__})"
            return f"{name} wraps an LM, but not all of its calls would use the store: give {inside}"
    return f"{name} isn't a causal or encoder-decoder language model of transformers"
