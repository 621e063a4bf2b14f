"""Load an LM and its tokenizer, safely and fast, and say exactly which one it is."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from knnstore.datastore.manifest import ModelIdentity
from knnstore.errors import ModelError
from knnstore.lm.spec import LmSpec, resolve_model

# What a config says of its own file, not of the computation.
_VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
_LONGEST_DEFAULT_CONTEXT = 1024
KINDS = {"causal": "a causal LM", "seq2seq": "an encoder-decoder model"}
_NEXT = {
    "causal": "leave out --task seq2seq, or give a model such as T5, BART or Marian",
    "seq2seq": "give --task seq2seq with parallel files, or a causal LM",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """An LM ready to run: in evaluation mode, on its device, with its tokenizer and identity."""

    model: Any
    tokenizer: Any  # None for a model from memory that came without one
    identity: ModelIdentity
    folder: Path
    device: torch.device
    dtype: str

    @property
    def task(self) -> str:
        """``causal``, or ``seq2seq`` for a decoder that reads a source."""
        return task_of_config(self.model.config)

    @property
    def bos(self) -> int:
        """The token that stands before every document: BOS, or EOS where there is no BOS; a decoder's start token."""
        source = self.model.config.get_text_config() if self.tokenizer is None else self.tokenizer
        if self.task == "seq2seq":
            return self._decoder_start
        for token in (source.bos_token_id, source.eos_token_id):
            if token is not None:
                return int(token[0] if isinstance(token, list) else token)
        raise ModelError(f"model {self.identity.name}: its tokenizer has neither a BOS nor an EOS token")

    @cached_property
    def _decoder_start(self) -> int:
        """What the model itself puts before a target text: a token of its own, or (mBART) the text's last."""
        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        start = self.model.config.decoder_start_token_id
        if shift is not None and self.tokenizer is not None:
            start = shift(torch.tensor([self.tokenise_target("").tolist()]))[0, 0]
        if start is None:
            raise ModelError(f"model {self.identity.name}: its configuration has no decoder_start_token_id")
        return int(start)

    @property
    def pad(self) -> int:
        """The token that fills up a source; the mask keeps it out of sight."""
        return int(self.model.config.pad_token_id or 0)

    @property
    def longest_context(self) -> int:
        """Most positions that one forward pass takes; a generous number where the config sets no limit."""
        config = self.model.config
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return int(limit or getattr(config, "max_seq_len", None) or 2**20)

    @property
    def default_context(self) -> int:
        """The LM's own maximum, at most 1024."""
        return min(self.longest_context, _LONGEST_DEFAULT_CONTEXT)

    def tokenise(self, text: str) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Token ids of a text, int64 (tokens,), without special tokens."""
        ids = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return np.asarray(ids, np.int64)

    def tokenise_source(self, text: str) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Token ids of what an encoder reads, int64 (tokens,), with the special tokens that it was trained with."""
        return np.asarray(self.tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"], np.int64)

    def tokenise_target(self, text: str) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Token ids of what a decoder writes, int64 (tokens,), with its special tokens: EOS is among them."""
        ids = self.tokenizer(text_target=text, return_attention_mask=False, verbose=False)["input_ids"]
        return np.asarray(ids, np.int64)

    def begun_target(self, text: str) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """What a decoder has read when it has written ``text`` and goes on: int64 (tokens,), its start token first."""
        whole = self.tokenise_target(text)
        # the special tokens that end a text are those that end the empty one; ones that begin it (BART's) stay
        end = int(self.tokenise_target("")[-1])
        written = whole[:-1] if len(whole) and whole[-1] == end else whole
        return np.concatenate([[self.bos], written])

    def decode(self, tokens: Any) -> str:
        """The text of token ids, nothing tidied."""
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=1)
def load_model(spec: LmSpec) -> LoadedModel:
    """The LM of ``spec``; loaded once a process.

    Raises ModelError for one that isn't there, is of the other kind, or can't be loaded.
    """
    folder = resolve_model(spec.model)
    device = _device(spec.device)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if (task := model_task(spec.model)) != spec.task:
        raise ModelError(f"model {Path(spec.model).name} is {KINDS[task]}, not {KINDS[spec.task]}: {_NEXT[task]}")
    kind = AutoModelForSeq2SeqLM if task == "seq2seq" else AutoModelForCausalLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        dtype = _dtype(spec, device)
        model = kind.from_pretrained(folder, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever its hundred model families raise
        if isinstance(error, ImportError) and "sentencepiece" in str(error).lower():
            told = "its tokenizer needs sentencepiece: pip install 'knnstore[seq2seq]'"
            raise ModelError(f"model {spec.model} can't be loaded: {told}") from error
        raise ModelError(f"model {spec.model} ({folder}) can't be loaded: {_first_line(error)}") from error
    if not tokenizer.vocab_size:  # what transformers makes of a folder without tokenizer files: no text has a token
        raise ModelError(
            f"model {spec.model} ({folder}) has no tokenizer: put its files there, with tokenizer.save_pretrained"
        )
    model = _fuse_activations(model.eval().to(device))
    return LoadedModel(model, tokenizer, identify(spec.model, folder, tokenizer, model), folder, device, dtype)


def model_task(model: str) -> str:
    """``causal`` or ``seq2seq``, by the configuration of a model that ``--model`` names."""
    folder = resolve_model(model)
    try:
        return task_of_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:  # as above
        raise ModelError(f"model {model} ({folder}) can't be loaded: {_first_line(error)}") from error


def task_of_config(config: Any) -> str:
    """``causal``, or ``seq2seq`` for an encoder-decoder model."""
    return "seq2seq" if getattr(config, "is_encoder_decoder", False) else "causal"


def adopt_model(model: Any, tokenizer: Any = None) -> LoadedModel:
    """An LM that is in memory already, as it is: nothing of it is changed, and only its keys tell which it is.

    Raises ModelError for one that is being trained: its dropout would make other keys at every pass.
    """
    if not hasattr(model, "config") or model.get_output_embeddings() is None:
        raise ModelError(
            f"{type(model).__name__} isn't a causal language model of transformers, nor an encoder-decoder model"
        )
    if model.training:
        raise ModelError(
            f"{type(model).__name__} is in training mode, where dropout spoils the keys: call model.eval()"
        )
    name = Path(model.name_or_path).name or type(model).__name__
    identity = ModelIdentity(name, "", "", "", int(model.config.get_text_config().vocab_size))
    return LoadedModel(model, tokenizer, identity, Path(), model.device, str(model.dtype).removeprefix("torch."))


def identify(name: str, folder: Path, tokenizer: Any, model: Any) -> ModelIdentity:
    """The identity of a model: digests of its weights' bytes, its config and its tokenizer."""
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    config = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    specials = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id}"
    return ModelIdentity(
        name=Path(name).name,
        weights=weights.hexdigest(),
        config=_digest(json.dumps(config, sort_keys=True, default=str)),
        tokenizer=_digest(f"{rules}\n{specials}"),
        vocabulary=max(len(tokenizer), int(model.config.get_text_config().vocab_size)),
    )


def _fuse_activations(model: Any) -> Any:
    """Swap GPT-2's spelled-out tanh GELU for the fused one: the same function, a tenth faster over the whole LM."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


def _device(device: str) -> torch.device:
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"--device {device}: {_first_line(error)}") from error
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(spec: LmSpec, device: torch.device) -> str:
    if spec.dtype != "auto":
        if spec.dtype not in DTYPES:
            raise ModelError(f"--dtype {spec.dtype!r} is none of auto, {', '.join(DTYPES)}")
        return spec.dtype
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if not spec.exact and cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX512-BF16 or AMX), so that it is faster than float32."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported()) if supported is not None else False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
