"""Whether a config can belong to the weights beside it: checked before a model is built, which a config of 100,000
layers would take hours and all the memory for. Imports no torch."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from knnstore.errors import ModelError
from knnstore.lm.folders import read_config, tensor_shapes

_LAYERS = re.compile(r"^(num_|n_)?((hidden|encoder|decoder|text|transformer)_)?(layers?|blocks)$|^depth$")
_EXPERTS = re.compile(r"^(num|n)_(local_|routed_)?experts$")
_HEADS = re.compile(r"^(num_|n_)?(attention_|encoder_attention_|decoder_attention_)?heads?$")
_SIZES = re.compile(
    r"^(hidden_size|n_embd|d_model|n_embed|embed_dim|intermediate_size|d_ff|ffn_dim|n_inner|vocab_size)$"
)
_CONTEXTS = re.compile(r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|seq_length)$")
# No LM reads so much at once: the longest contexts that are published have 10 million positions.
_LONGEST_CONTEXT = 2**26
_MOST_NESTED = 8


def weight_count(folder: Path) -> int:
    """Numbers in the tensors of the folder's .safetensors files."""
    return sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def require_plausible(folder: Path) -> None:
    """Raise ModelError, naming the setting, for a config that the weights in the folder can't be of.

    Each layer has a tensor of its own, each expert one or a row of one, and no width exceeds the number of weights.
    """
    shapes = tensor_shapes(folder)
    weights = weight_count(folder)
    # experts may be the rows of one tensor
    parts = max([len(shapes), *(shape[0] for shape in shapes.values() if shape)])
    for name, value in _settings(read_config(folder)):
        key = name.rpartition(".")[2]
        limits = {_LAYERS: len(shapes), _EXPERTS: parts, _HEADS: weights, _SIZES: weights, _CONTEXTS: _LONGEST_CONTEXT}
        for pattern, most in limits.items():
            least = {_HEADS: 1, _SIZES: 1, _CONTEXTS: -1}.get(pattern, 0)  # a context of −1 has no end
            if pattern.match(key) and (problem := _problem(value, least, most)):
                raise ModelError(
                    f"model {folder.name} ({folder}) can't be loaded: its config.json has {name} {value!r:.40}, "
                    f"{problem}, beside {weights:,} weights: use the config.json that came with them"
                )


def _problem(value: Any, least: int, most: int) -> str | None:
    """What is wrong with a number, in words; None for nothing, and for settings that aren't numbers."""
    if value is None or isinstance(value, list | dict):
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        return "which is no whole number"
    return None if least <= value <= most else f"which is not between {least} and {most:,}"


def _settings(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of the settings, of nested parts with a dot before them."""
    for name, value in config.items():
        if isinstance(value, dict) and prefix.count(".") < _MOST_NESTED:
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
