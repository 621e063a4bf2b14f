"""What the generation_config.json of a model asks for: sampling, penalties, bans, and other ways to search."""

from typing import Any

_TOP_K = 50  # what generate() of transformers takes where a file that asks for sampling doesn't say
# What has no effect, of every setting that changes which tokens are written.
_SAMPLING = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_PENALTIES = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "min_length": 0,
    "min_new_tokens": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
}
# A text that is written token by token, each with its share of the store, can't be searched for in these ways.
_OTHERS = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "guidance_scale": 1,
    "watermarking_config": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "token_healing": False,
    "top_h": None,
    "use_mtp": None,
    "speculation_type": None,
    "stop_strings": None,
    "max_time": None,
}


def asked_sampling(model: Any) -> dict[str, Any]:
    """How the file asks for tokens to be drawn; empty if it asks for the most probable."""
    config = model.generation_config
    if not getattr(config, "do_sample", False):
        return {}
    asked = {"temperature": 1.0, **_set(config, _SAMPLING)}
    return asked if getattr(config, "top_k", None) is not None else {**asked, "top_k": _TOP_K}


def asked_penalties(model: Any) -> dict[str, Any]:
    """The penalties and bans that the file asks for, as arguments of ``generate``."""
    return _set(model.generation_config, _PENALTIES)


def asked_otherwise(model: Any) -> dict[str, Any]:
    """What else the file asks for, and a text that is written token by token can't follow."""
    return _set(model.generation_config, _OTHERS)


def words(asked: dict[str, Any]) -> str:
    """Settings for people; a list by its length."""
    said = (f"{len(v)} {name}" if isinstance(v, list | dict) else f"{name} {v}" for name, v in asked.items())
    return ", ".join(said)


def without(asked: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate`` that take back what the file asks for."""
    neutral = {**_PENALTIES, **_OTHERS}
    return {name: neutral[name] for name in asked}


def _set(config: Any, neutral: dict[str, Any]) -> dict[str, Any]:
    values = {name: getattr(config, name, None) for name in neutral}
    return {name: value for name, value in values.items() if value is not None and value != neutral[name]}
