"""Which LM this is: digests of its weights, its configuration and its tokenizer, the same under every version of the
libraries that loads the same files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.manifest import ModelIdentity
from knnstore.lm.folders import read_config

# At the end of a digest of configuration or tokenizer that doesn't depend on the libraries' versions. Digests without
# it were made of what the library had made of the files, under whatever version that was.
STABLE = "-2"

# Keys of config.json that change no number of a forward pass: what the file says of itself, how to store and return
# results, settings of ``generate``, names of classes for people. All others count.
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
# Text in which tokenizers differ: case, accents composed and not, digits, white space, quotes, other scripts, code.
_PROBE = (
    "The  River mill's stone, ISN'T it? Zoë's café - cafe\u0301 \u201cquoted\u201d \u2026 \u2014 1234567 3.14 1,000\n\n"
    "\tdef f(x):  return x**2 # TODO\r\n   indented \u6771\u4eac\u30bf\u30ef\u30fc \u0417\u0434\u0440\u0430\u0432"
    "\u0441\u0442\u0432\u0443\u0439 \u0645\u0631\u062d\u0628\u0627 \U0001f600\U0001f468\u200d\U0001f469\u200d"
    "\U0001f467 na\u00efve \ufb01 \u00bd x\u00b2 \u00a0nbsp antidisestablishmentarianism https://example.org/a_b?c=d"
)


def identify(name: str, folder: Path, tokenizer: Any, model: Any) -> ModelIdentity:
    """The identity of a model that was loaded from ``folder``, which no library's version has a part in.

    The weights are known by their files' bytes, the configuration by what config.json says that can change a number,
    and the tokenizer by its tokens, its merges or scores, and what it makes of a sample text.
    """
    return ModelIdentity(
        name=Path(name).name,
        weights=_weights_digest(folder),
        config=_digest(_plain(read_config(folder))) + STABLE,
        tokenizer=_digest(_tokenizer_rules(tokenizer)) + STABLE,
        vocabulary=max(len(tokenizer), int(model.config.get_text_config().vocab_size)),
    )


def former_digests(tokenizer: Any, config: Any) -> tuple[str, str]:
    """The digests of configuration and tokenizer as they were made before they were independent of the libraries."""
    volatile = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
    settings = {key: value for key, value in config.to_dict().items() if key not in volatile}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    specials = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id}"
    whole = json.dumps(settings, sort_keys=True, default=str)
    return _sha256(whole), _sha256(f"{rules}\n{specials}")


def is_stable(digest: str) -> bool:
    """Whether a digest is the same under every version of the libraries."""
    return digest.endswith(STABLE)


def may_be_same(one: ModelIdentity, other: ModelIdentity) -> bool:
    """Whether two identities may be of one LM: weights and vocabulary are the same, and so are all stable digests.

    Of digests that depend on the libraries' versions only the keys can tell.
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
    """A JSON value without what is irrelevant, and whole floats as integers: 1.0 and 1 are one setting."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key not in _IRRELEVANT}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _tokenizer_rules(tokenizer: Any) -> dict[str, Any]:
    """What decides over tokens, as JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    # of old files a merge is one string, and two of new ones
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or ()]
    scores = model["vocab"] if isinstance(model.get("vocab"), list) else []  # of Unigram: tokens and their scores
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
