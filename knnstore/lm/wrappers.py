"""The LM inside what wraps it: the module that every way of calling the wrapper ends in."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from knnstore.errors import ModelError

_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


def unwrapped(model: Any) -> Any:
    """The LM of transformers that ``model`` is or wraps.

    Of ``torch.compile``, DataParallel, DistributedDataParallel and the adapters of PEFT it is the LM inside, whose own
    call both the wrapper's forward pass and ``generate`` end in. Raises ModelError for any other wrapper, naming what
    to give instead; for adapters that put virtual tokens before the text; and for an LM in shards.
    """
    outer = model
    while not isinstance(model, PreTrainedModel):
        model = _inside(model, outer)
    if any(base.__name__ in _SHARDED for module in model.modules() for base in type(module).__mro__):
        raise ModelError(
            f"{type(outer).__name__} holds an LM in shards, and no process has all of it: load the LM without FSDP"
        )
    if model.get_output_embeddings() is None:
        raise ModelError(_no_lm(model))
    return model


def input_device(model: Any) -> torch.device:
    """Where the LM takes its token ids: its own device, or where accelerate runs weights that it has offloaded.

    Raises ModelError for weights that aren't loaded at all.
    """
    if model.device.type != "meta":
        return torch.device(model.device)
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    for device in (getattr(hook, "execution_device", None) for hook in hooks):
        if device is not None:
            return torch.device(device)
    raise ModelError(f"{type(model).__name__} has no weights, only their shapes (device meta): load it with them")


def _inside(model: Any, outer: Any) -> Any:
    """What a wrapper calls."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"{type(model).__name__} is compiled by TorchScript, where a store can't be attached: attach it to the LM "
            "that was compiled"
        )
    if (original := getattr(model, "_orig_mod", None)) is not None:
        return original
    if isinstance(model, nn.DataParallel | DistributedDataParallel):
        return model.module
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        if any(config.is_prompt_learning for config in model.peft_config.values()):
            raise ModelError(
                f"{type(model).__name__} puts virtual tokens before the text ({_kinds(model)}), which the store's keys "
                "don't know: attach the store to the LM alone, model.get_base_model()"
            )
        return model.get_base_model()
    if outer is not model:
        raise ModelError(f"{type(outer).__name__} wraps a {type(model).__name__}: {_no_lm(model)}")
    raise ModelError(_no_lm(model))


def _kinds(model: Any) -> str:
    return ", ".join(sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in model.peft_config.values()}))


def _no_lm(model: Any) -> str:
    """The refusal of what is no LM; it names an LM inside, if there is one."""
    name = type(model).__name__
    parts = model.named_modules() if isinstance(model, nn.Module) else getattr(model, "__dict__", {}).items()
    for path, part in parts:
        if part is not model and isinstance(part, PreTrainedModel) and part.get_output_embeddings() is not None:
            inside = f"its .{path} ({type(part).__name__})"
            return f"{name} wraps an LM, and not all of its calls would reach the store: give {inside}"
    return f"{name} isn't a causal language model of transformers, nor an encoder-decoder model"
