"""Find the layer whose activations are the keys, from the structure of the model rather than its name."""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from knnstore.datastore.manifest import DECODER
from knnstore.errors import ModelError
from knnstore.wording import option

KeyLayer = Literal["ffn-input", "attention-input", "hidden"]

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_OTHER_MIXERS = re.compile(r"mixer|mamba|ssm|rwkv|conv|recurrent|temporal|linear_attn", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln|_ln|drop|^act", re.IGNORECASE)
# parts of a multimodal model that don't read text
_OTHER_SENSES = re.compile(r"vision|visual|image|img|video|audio|speech", re.IGNORECASE)
_NORM_LAYER = re.compile(r"^layer_?norm$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class KeyPoint:
    """Where keys are taken: at the input of ``module``, or the final hidden state if that is None.

    ``layer``: a ``KeyLayer``, with the prefix ``decoder-`` in a decoder. ``path``: name of the module, for people.
    """

    layer: str
    path: str
    module: nn.Module | None


def find_key_point(model: Any, layer: str) -> KeyPoint:
    """Return the place of ``layer`` in ``model``, an LM of Hugging Face.

    ``ffn-input``: input of the feed-forward part of the last block, after its layer norm (Khandelwal et al. 2020, §4);
    in a model without one, the final hidden state, as shown by ``layer`` of the result. ``decoder-…``: the same in the
    decoder of an encoder-decoder model (Khandelwal et al. 2021, §2).
    Raises ModelError if the name of the layer is unknown or the model has no attention.
    """
    prefix, kind = (DECODER, layer.removeprefix(DECODER)) if layer.startswith(DECODER) else ("", layer)
    if kind not in get_args(KeyLayer):
        layers = get_args(KeyLayer)
        raise ModelError.about("key", kind, limit=layers, remedy=f"give one of {', '.join(layers)}")
    hidden = KeyPoint(f"{prefix}hidden", "final hidden state", None)
    if kind == "hidden":
        return hidden
    last = _last_block(model)
    if last is None:
        return hidden
    path, block = last
    if kind == "attention-input":
        names = [name for name, child in block.named_children() if _is_kind(_ATTENTION, name, child)]
        if not names:
            raise ModelError(f"{type(model).__name__} has no attention in {path}: use {option('key', 'hidden')}")
        return KeyPoint(layer, *_behind_norm(f"{path}.{names[0]}", block.get_submodule(names[0])))
    # The feed-forward part of a block has weight matrices and doesn't mix positions. If it consists of several modules
    # (OPT's fc1 and fc2), the first one has its input.
    names = [name for name, child in block.named_children() if _is_feed_forward(name, child)]
    if not names:
        return hidden
    return KeyPoint(layer, *_behind_norm(f"{path}.{names[0]}", block.get_submodule(names[0])))


def module_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the activations that a module is called with: ``hidden_states``, or its first tensor."""
    if "hidden_states" in kwargs:
        return kwargs["hidden_states"]  # type: ignore[no-any-return]
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))


def _last_block(model: Any) -> tuple[str, nn.Module] | None:
    """Return the last block of the longest list of blocks that read text, preferably in a decoder."""
    rows = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and any(True for _ in module.parameters())
    ]
    # nested lists (experts in a block) are ignored
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
    """Return the computing module of a part that also contains its layer norm (T5), so that its input is normed."""
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
    # quantised layers store their weights elsewhere
    return any(hasattr(part, "in_features") and hasattr(part, "out_features") for part in module.modules())
