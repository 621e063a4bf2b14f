"""Requests in a model's generation_config.json: sampling, penalties, bans and other ways to search."""

from typing import Any

_TOP_K = 50  # default of transformers' generate() when the file requests sampling
# Neutral values of all settings that change which tokens are generated.
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
# Not applicable to text that is generated token by token, each with the store's share of it.
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
    """Return the sampling that the file requests; empty if it requests the most probable token."""
    config = model.generation_config
    if not getattr(config, "do_sample", False):
        return {}
    asked = {"temperature": 1.0, **_set(config, _SAMPLING)}
    return asked if getattr(config, "top_k", None) is not None else {**asked, "top_k": _TOP_K}


def asked_penalties(model: Any) -> dict[str, Any]:
    """Return the penalties and bans that the file requests, as arguments of ``generate``."""
    return _set(model.generation_config, _PENALTIES)


def asked_otherwise(model: Any) -> dict[str, Any]:
    """Return the other requests of the file, which don't apply to text generated token by token."""
    return _set(model.generation_config, _OTHERS)


def words(asked: dict[str, Any]) -> str:
    """Return settings as text for people; a list by its length."""
    parts = (f"{len(v)} {name}" if isinstance(v, list | dict) else f"{name} {v}" for name, v in asked.items())
    return ", ".join(parts)


def without(asked: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of ``generate`` that neutralise the requests of the file."""
    neutral = {**_PENALTIES, **_OTHERS}
    return {name: neutral[name] for name in asked}


def _set(config: Any, neutral: dict[str, Any]) -> dict[str, Any]:
    values = {name: getattr(config, name, None) for name in neutral}
    return {name: value for name, value in values.items() if value is not None and value != neutral[name]}
