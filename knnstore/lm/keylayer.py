"""Find the layer whose activations are the keys, by the structure of the model rather than its name."""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from knnstore.datastore.manifest import DECODER
from knnstore.errors import ModelError

KeyLayer = Literal["ffn-input", "attention-input", "hidden"]

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_OTHER_MIXERS = re.compile(r"mixer|mamba|ssm|rwkv|conv|recurrent|temporal|linear_attn", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln|_ln|drop|^act", re.IGNORECASE)
# parts of a multimodal model that read no text
_OTHER_SENSES = re.compile(r"vision|visual|image|img|video|audio|speech", re.IGNORECASE)
_NORM_LAYER = re.compile(r"^layer_?norm$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class KeyPoint:
    """Where keys are taken: the input of ``module``, or the final hidden state where it is None.

    ``layer`` is a ``KeyLayer``, behind ``decoder-`` if it is in a decoder. ``path`` is the module's name in the model,
    for people.
    """

    layer: str
    path: str
    module: nn.Module | None


def find_key_point(model: Any, layer: str) -> KeyPoint:
    """The place in ``model`` (an LM of Hugging Face) that ``layer`` means.

    ``ffn-input``: input of the last block's feed-forward part, after its layer norm (Khandelwal et al. 2020, §4);
    a model without one gives its final hidden state, and ``layer`` of the result says so. ``decoder-…``: the same in
    the decoder of an encoder-decoder model (Khandelwal et al. 2021, §2).
    Raises ModelError if the layer's name is unknown or the model has no attention to take the input of.
    """
    prefix, kind = (DECODER, layer.removeprefix(DECODER)) if layer.startswith(DECODER) else ("", layer)
    if kind not in get_args(KeyLayer):
        raise ModelError(f"--key {kind!r} is none of {', '.join(get_args(KeyLayer))}")
    hidden = KeyPoint(f"{prefix}hidden", "final hidden state", None)
    if kind == "hidden":
        return hidden
    found = _last_block(model)
    if found is None:
        return hidden
    path, block = found
    if kind == "attention-input":
        names = [name for name, child in block.named_children() if _is_kind(_ATTENTION, name, child)]
        if not names:
            raise ModelError(f"{type(model).__name__} has no attention in {path}: use --key hidden")
        return KeyPoint(layer, *_behind_norm(f"{path}.{names[0]}", block.get_submodule(names[0])))
    # What holds weight matrices in a block and mixes no positions is its feed-forward part; where it is written
    # out in several modules (OPT's fc1, fc2) the first takes its input.
    names = [name for name, child in block.named_children() if _is_feed_forward(name, child)]
    if not names:
        return hidden
    return KeyPoint(layer, *_behind_norm(f"{path}.{names[0]}", block.get_submodule(names[0])))


def module_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The activations that a module is called with: its ``hidden_states``, or its first tensor."""
    if "hidden_states" in kwargs:
        return kwargs["hidden_states"]  # type: ignore[no-any-return]
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))


def _last_block(model: Any) -> tuple[str, nn.Module] | None:
    """The last of the longest row of like blocks that read text; a decoder's before an encoder's."""
    rows = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and any(True for _ in module.parameters())
    ]
    # nested lists (experts in a block) come after the list that holds them and are left out
    outer = [(p, m) for p, m in rows if not any(p.startswith(f"{q}.") for q, _ in rows if q != p)]
    if not outer:
        return None
    of_text = [(path, blocks) for path, blocks in outer if not _OTHER_SENSES.search(path)]
    path, blocks = max(of_text or outer, key=lambda row: ("encoder" not in row[0].replace("decoder", ""), len(row[1])))
    path, block = f"{path}.{len(blocks) - 1}", blocks[-1]
    parts = list(block.named_children())
    if len(parts) == 1 and isinstance(parts[0][1], nn.ModuleList):  # T5 lists the parts of a block
        return f"{path}.{parts[0][0]}", parts[0][1]
    return path, block


def _behind_norm(path: str, part: nn.Module) -> tuple[str, nn.Module]:
    """The part of a block that computes, where one wraps it and its layer norm (T5): its input is after the norm."""
    children = dict(part.named_children())
    inner = [name for name, child in children.items() if _has_matrices(child)]
    if len(inner) == 1 and any(_NORM_LAYER.search(name) for name in children):
        return f"{path}.{inner[0]}", children[inner[0]]
    return path, part


def _is_kind(pattern: re.Pattern[str], name: str, module: nn.Module) -> bool:
    return bool(pattern.search(name) or pattern.search(type(module).__name__)) and not _NORM.search(name)


def _is_feed_forward(name: str, module: nn.Module) -> bool:
    if _NORM.search(name) or _NORM.search(type(module).__name__):
        return False
    if _ATTENTION.search(name) or _is_kind(_OTHER_MIXERS, name, module) or _ATTENTION.search(type(module).__name__):
        return False
    return _has_matrices(module)


def _has_matrices(module: nn.Module) -> bool:
    if any(parameter.dim() >= 2 for parameter in module.parameters()):
        return True
    # quantised layers keep theirs elsewhere
    return any(hasattr(part, "in_features") and hasattr(part, "out_features") for part in module.modules())
