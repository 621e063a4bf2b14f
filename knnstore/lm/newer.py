"""Load files written by transformers 5 with transformers 4 too, so that they give the same LM under both."""

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from knnstore.errors import ModelError
from knnstore.lm.folders import read_config

_IS_OLD = int(transformers.__version__.split(".", maxsplit=1)[0]) < 5


def load_config(folder: Path) -> Any:
    """Return the configuration of a model. Raises ModelError for settings that this transformers would ignore."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if _IS_OLD:
        raw = read_config(folder)
        _take_rope(config, raw, folder)
        for name, part in raw.items():
            if isinstance(part, dict) and hasattr(getattr(config, name, None), "to_dict"):
                _take_rope(getattr(config, name), part, folder)
    return config


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model, in a class that this version of transformers has."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:  # transformers 5 has one class for everything in tokenizer.json
        if "TokenizersBackend" not in str(error) or not (folder / "tokenizer.json").is_file():
            raise
        return PreTrainedTokenizerFast.from_pretrained(folder)


def _take_rope(config: Any, raw: dict[str, Any], folder: Path) -> None:
    """Set the rotary embedding of ``config``, which transformers 5 writes in one setting and 4 reads from three."""
    rope = raw.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    if any(isinstance(value, dict) for value in rope.values()):  # one per kind of layer
        raise ModelError(
            f"model {folder.name} ({folder}) can't be loaded: its config.json has rope_parameters of transformers 5, "
            f"which transformers {transformers.__version__} can't read: pip install --upgrade transformers"
        )
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            setattr(config, name, rope[name])
    config.rope_scaling = None if scaling.get("rope_type", "default") == "default" else scaling
