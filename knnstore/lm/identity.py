"""The identity of an LM: digests of weights, configuration and tokenizer that don't depend on library versions."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.manifest import ModelIdentity
from knnstore.lm.folders import read_config

# Suffix of digests of configuration and tokenizer that don't depend on library versions. Digests without it were
# computed from what some version of the library made of the files.
STABLE = "-2"

# Keys of config.json that don't affect a forward pass: metadata, how results are stored and returned, settings of
# ``generate``, class labels. All others count.
# fmt: off
_IRRELEVANT = frozenset((
    "_commit_hash", "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "torchscript",
    "transformers_version", "use_bfloat16", "use_cache", "output_attentions", "output_hidden_states",
    "output_scores", "return_dict", "return_dict_in_generate", "finetuning_task", "id2label", "label2id",
    "problem_type", "task_specific_params", "tokenizer_class", "bad_words_ids", "begin_suppress_tokens",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "length_penalty",
    "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "remove_invalid_values", "repetition_penalty", "suppress_tokens", "top_p", "typical_p",
))
# fmt: on
# Text on which tokenizers differ: case, accents (composed or not), digits, white space, quotes, scripts, code.
_PROBE = (
    "The  River mill's stone, ISN'T it? Zoë's café - cafe\u0301 \u201cquoted\u201d \u2026 \u2014 1234567 3.14 1,000\n\n"
    "\tdef f(x):  return x**2 # TODO\r\n   indented \u6771\u4eac\u30bf\u30ef\u30fc \u0417\u0434\u0440\u0430\u0432"
    "\u0441\u0442\u0432\u0443\u0439 \u0645\u0631\u062d\u0628\u0627 \U0001f600\U0001f468\u200d\U0001f469\u200d"
    "\U0001f467 na\u00efve \ufb01 \u00bd x\u00b2 \u00a0nbsp antidisestablishmentarianism https://example.org/a_b?c=d"
)


def identify(name: str, folder: Path, tokenizer: Any, model: Any) -> ModelIdentity:
    """Return the identity of a model loaded from ``folder``, independent of library versions.

    It covers the bytes of the weights, the keys of config.json that affect a forward pass, and of the tokenizer the
    tokens, the merges or scores, and the tokens of a sample text.
    """
    return ModelIdentity(
        name=Path(name).name,
        weights=_weights_digest(folder),
        config=_digest(_plain(read_config(folder))) + STABLE,
        tokenizer=_digest(_tokenizer_rules(tokenizer)) + STABLE,
        vocabulary=max(len(tokenizer), int(model.config.get_text_config().vocab_size)),
    )


def former_digests(tokenizer: Any, config: Any) -> tuple[str, str]:
    """Return digests of configuration and tokenizer of the former kind, which depend on library versions."""
    volatile = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
    settings = {key: value for key, value in config.to_dict().items() if key not in volatile}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    specials = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id}"
    whole = json.dumps(settings, sort_keys=True, default=str)
    return _sha256(whole), _sha256(f"{rules}\n{specials}")


def is_stable(digest: str) -> bool:
    """Return whether a digest is independent of library versions."""
    return digest.endswith(STABLE)


def may_be_same(one: ModelIdentity, other: ModelIdentity) -> bool:
    """Return whether two identities may belong to one LM: equal weights, vocabulary and stable digests.

    If digests depend on library versions, only a comparison of keys can decide.
    """
    pairs = ((one.config, other.config), (one.tokenizer, other.tokenizer))
    same = all(a == b or not (is_stable(a) and is_stable(b)) for a, b in pairs)
    return same and (one.weights, one.vocabulary) == (other.weights, other.vocabulary)


def _weights_digest(folder: Path) -> str:
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    return weights.hexdigest()


def _plain(value: Any) -> Any:
    """Return a JSON value without irrelevant keys and with whole floats as integers, since 1.0 and 1 are equal."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key not in _IRRELEVANT}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _tokenizer_rules(tokenizer: Any) -> dict[str, Any]:
    """Return what determines the tokens of a text, as JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    # a merge is one string in old files and two in new ones
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or ()]
    scores = model["vocab"] if isinstance(model.get("vocab"), list) else []  # for Unigram: tokens and their scores
    return {
        "tokens": tokenizer.get_vocab(),
        "merges": merges,
        "scores": scores,
        "ends": [tokenizer.bos_token_id, tokenizer.eos_token_id],
        "probe": _ids(tokenizer(_PROBE, add_special_tokens=False, verbose=False)["input_ids"]),
        "source": _ids(tokenizer("river", verbose=False)["input_ids"]),
    }


def _ids(ids: Any) -> list[int]:
    tokens: list[int] = np.asarray(ids, np.int64).tolist()
    return tokens


def _digest(value: Any) -> str:
    return _sha256(json.dumps(value, sort_keys=True, default=str))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
