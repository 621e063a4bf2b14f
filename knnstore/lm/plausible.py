"""Check that a config can belong to its weights before a model is built, because a config of 100,000 layers would take
hours and all the memory. Imports no torch."""

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
# More than any LM reads: the longest published contexts have 10 million positions.
_LONGEST_CONTEXT = 2**26
_MOST_NESTED = 8


def weight_count(folder: Path) -> int:
    """Return the number of weights in the folder's .safetensors files."""
    return sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def require_plausible(folder: Path) -> None:
    """Raise ModelError, with the setting, for a config that can't belong to the weights in the folder.

    Each layer has its own tensor, each expert a tensor or a row of one, and no width exceeds the number of weights.
    """
    shapes = tensor_shapes(folder)
    weights = weight_count(folder)
    # experts may be the rows of one tensor
    parts = max([len(shapes), *(shape[0] for shape in shapes.values() if shape)])
    for name, value in _settings(read_config(folder)):
        key = name.rpartition(".")[2]
        limits = {_LAYERS: len(shapes), _EXPERTS: parts, _HEADS: weights, _SIZES: weights, _CONTEXTS: _LONGEST_CONTEXT}
        for pattern, most in limits.items():
            least = {_HEADS: 1, _SIZES: 1, _CONTEXTS: -1}.get(pattern, 0)  # a context of −1 means no limit
            if pattern.match(key) and (problem := _problem(value, least, most)):
                raise ModelError(
                    f"model {folder.name} ({folder}) can't be loaded: its config.json has {name} {value!r:.40}, "
                    f"{problem}, for {weights:,} weights: use the config.json that came with them"
                )


def _problem(value: Any, least: int, most: int) -> str | None:
    """Return what is wrong with a number; None if nothing is or the setting isn't a number."""
    if value is None or isinstance(value, list | dict):
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        return "which isn't an integer"
    return None if least <= value <= most else f"which is not between {least} and {most:,}"


def _settings(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield names and values of the settings; names of nested settings are joined by dots."""
    for name, value in config.items():
        if isinstance(value, dict) and prefix.count(".") < _MOST_NESTED:
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
