"""Load an LM and its tokenizer safely and fast, and determine its identity."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from knnstore.arrays import Int64
from knnstore.datastore.manifest import ModelIdentity
from knnstore.errors import ModelError
from knnstore.lm.folders import read_config
from knnstore.lm.identity import former_digests, identify
from knnstore.lm.newer import load_config, load_tokenizer
from knnstore.lm.plausible import require_plausible, weight_count
from knnstore.lm.spec import LmSpec, resolve_model
from knnstore.lm.spellings import Spellings
from knnstore.lm.wrappers import input_device, unwrapped
from knnstore.wording import option

_LONGEST_DEFAULT_CONTEXT = 1024
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
# How much more a config may describe than the files hold: tied weights counted twice, tables that aren't saved.
_MOST_PROMISED, _MOST_UNSAVED = 2, 2**20
_KINDS = {
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "seq2seq": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
}
KINDS = {"causal": "a causal LM", "seq2seq": "an encoder-decoder model"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """An LM ready to run: in evaluation mode, on its device, with its tokenizer and identity."""

    model: Any
    tokenizer: Any  # None for a model in memory given without one
    identity: ModelIdentity
    folder: Path
    device: torch.device
    dtype: str

    @property
    def task(self) -> str:
        """Return ``causal``, or ``seq2seq`` for an encoder-decoder model."""
        return task_of_config(self.model.config)

    @property
    def bos(self) -> int:
        """Return the token before every document: BOS, or EOS without a BOS; in a decoder the start token."""
        source = self.model.config.get_text_config() if self.tokenizer is None else self.tokenizer
        if self.task == "seq2seq":
            return self._decoder_start
        for token in (source.bos_token_id, source.eos_token_id):
            if token is not None:
                return int(token[0] if isinstance(token, list) else token)
        raise ModelError(f"model {self.identity.name}: its tokenizer has neither a BOS nor an EOS token")

    @cached_property
    def _decoder_start(self) -> int:
        """Return the token that the model puts before a target: a special token, or (mBART) the last of the text."""
        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        start = self.model.config.decoder_start_token_id
        if shift is not None and self.tokenizer is not None:
            start = shift(torch.tensor([self.tokenise_target("").tolist()]))[0, 0]
        if start is None:
            raise ModelError(f"model {self.identity.name}: its configuration has no decoder_start_token_id")
        return int(start)

    @cached_property
    def former_digests(self) -> tuple[str, str]:
        """Return digests of configuration and tokenizer as in stores made by earlier versions of knnstore."""
        return former_digests(self.tokenizer, self.model.config)

    @property
    def pad(self) -> int:
        """Return the token that pads a source; it is masked."""
        return int(self.model.config.pad_token_id or 0)

    @property
    def longest_context(self) -> int:
        """Return the maximum positions of a forward pass; a large number if the config sets no limit."""
        # an encoder-decoder config describes both sides, and a multimodal one has a text part
        text, whole = self.model.config.get_text_config(decoder=True), self.model.config
        limits = (getattr(config, name, None) for config in (text, whole) for name in _CONTEXT_NAMES)
        return int(next((limit for limit in limits if limit and limit > 0), 2**20))  # XLNet uses −1 for no limit

    @property
    def default_context(self) -> int:
        """Return the LM's own maximum, at most 1024."""
        return min(self.longest_context, _LONGEST_DEFAULT_CONTEXT)

    def tokenise(self, text: str, *, special: bool = True) -> Int64:
        """Return the token ids of a text, int64 (tokens,), without special tokens around it.

        ``special``: whether special tokens spelled out in the text are tokens rather than ordinary text. Raises
        ModelError for a token without an embedding in the LM, as do ``tokenise_source`` and ``tokenise_target``.
        """
        if not special:  # a token without an embedding is reported even though the text won't contain it
            self._embedded(self.spellings.tokens(text), self.readable)
        ids = self.spellings.ids(text, special=special, add_special_tokens=False)
        return self._embedded(ids, self.readable)

    def tokenise_source(self, text: str, *, special: bool = True) -> Int64:
        """Return the token ids of an encoder's input, int64 (tokens,), with the special tokens of its training.

        ``special``: as for ``tokenise``.
        """
        return self._embedded(self.spellings.ids(text, special=special), self.readable)

    def tokenise_target(self, text: str, *, special: bool = True) -> Int64:
        """Return the token ids of a decoder's output, int64 (tokens,), with its special tokens, including EOS.

        ``special``: as for ``tokenise``.
        """
        return self._embedded(self.spellings.ids(text, special=special, name="text_target"), self.writable)

    @cached_property
    def spellings(self) -> Spellings:
        """Return the spellings of special tokens in text."""
        return Spellings(self.tokenizer)

    @cached_property
    def readable(self) -> int:
        """Return the number of tokens with an input embedding."""
        return _rows(self.model.get_input_embeddings()) or self.identity.vocabulary

    @cached_property
    def writable(self) -> int:
        """Return the number of tokens with an output probability."""
        return _rows(self.model.get_output_embeddings()) or self.identity.vocabulary

    def _embedded(self, tokens: Any, most: int) -> Int64:
        ids = np.asarray(tokens, np.int64)
        if len(ids) and int(ids.max()) >= most:
            token = int(ids[ids >= most][0])
            raise ModelError(
                f"the text has {self.tokenizer.convert_ids_to_tokens(token)!r}, token {token} of the tokenizer, but "
                f"the embedding of model {self.identity.name} ends at {most - 1}: call "
                f"model.resize_token_embeddings({len(self.tokenizer)}), train and save the model, or remove that text"
            )
        return ids

    def begun_target(self, text: str) -> Int64:
        """Return the input of a decoder that continues ``text``: int64 (tokens,), starting with the start token."""
        whole = self.tokenise_target(text)
        # drop the special token at the end, which also ends the empty text; keep those at the start (BART)
        end = int(self.tokenise_target("")[-1])
        written = whole[:-1] if len(whole) and whole[-1] == end else whole
        return np.concatenate([[self.bos], written])

    def decode(self, tokens: Any) -> str:
        """Return the text of token ids without clean-up."""
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=1)
def load_model(spec: LmSpec) -> LoadedModel:
    """Return the LM of ``spec``, loaded once per process.

    Raises ModelError if it doesn't exist, is of the other kind, or can't be loaded.
    """
    folder = resolve_model(spec.model)
    device = _device(spec.device)
    if (task := model_task(spec.model)) != spec.task:
        pairs = option("task", "seq2seq")
        omit = f"omit {pairs}, or give a model such as T5, BART or Marian"
        remedy = omit if task == "causal" else f"give {pairs} with parallel files, or a causal LM"
        raise ModelError(f"model {Path(spec.model).name} is {KINDS[task]}, not {KINDS[spec.task]}: {remedy}")
    kind, families = _KINDS[task]
    dtype = _dtype(spec, device)
    with _loading(spec.model, folder):
        tokenizer, config = load_tokenizer(folder), load_config(folder)
        if config.model_type not in families:
            raise ModelError(
                f"model {spec.model} ({folder}) is of the family {config.model_type}, which isn't a text-generating "
                "language model in transformers: give a causal LM such as GPT-2 or Llama"
            )
        _require_promised(folder, config, kind)
        model, info = kind.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are reported below
            output_loading_info=True,
        )
    _require_complete(spec.model, folder, info)
    if not tokenizer.vocab_size:  # result of transformers for a folder without tokenizer files
        raise ModelError(
            f"model {spec.model} ({folder}) has no tokenizer: save it there with tokenizer.save_pretrained"
        )
    model = _fuse_activations(model.eval().to(device))
    # The last bits of a product depend on the number of threads. Unless torch is given a number, MKL chooses its own
    # for each product, such as one per physical core, while torch counts logical cores.
    torch.set_num_threads(torch.get_num_threads())
    return LoadedModel(model, tokenizer, identify(spec.model, folder, tokenizer, model), folder, device, dtype)


def _require_promised(folder: Path, config: Any, kind: Any) -> None:
    """Raise ModelError if the config describes a far larger model than the files hold, which may exceed the memory."""
    if getattr(config, "quantization_config", None) is not None:  # several weights are packed into one number
        return
    promised = 0
    with suppress(Exception), torch.device("meta"):  # some families can't be built on the meta device
        promised = sum(parameter.numel() for parameter in kind.from_config(config).parameters())
    held = weight_count(folder)
    if promised > _MOST_PROMISED * held + _MOST_UNSAVED:
        raise ModelError(
            f"model {folder.name} ({folder}) can't be loaded: its config.json describes {promised:,} weights but its "
            f"files hold {held:,}: use the config.json that came with the weights, and all weight files"
        )


def _require_complete(name: str, folder: Path, info: dict[str, Any]) -> None:
    """Raise ModelError for weights that are missing or have another shape, since they would be random."""
    mismatched = {str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]}
    for words, weights in (("lacks", set(info["missing_keys"]) - mismatched), ("has another shape of", mismatched)):
        if weights:
            named = ", ".join(sorted(weights)[:3]) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")
            raise ModelError(
                f"model {name} ({folder}) {words} {named}, so it would run with random weights: give the complete LM, "
                "including its head, and its own config.json"
            )


@contextmanager
def _loading(name: str, folder: Path) -> Iterator[None]:
    """Turn all errors of transformers raised within into a ModelError with a one-line reason."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # model families raise all kinds of errors
        raise ModelError(f"model {name} ({folder}) can't be loaded: {_reason(error, folder)}") from error


def _reason(error: Exception, folder: Path) -> str:
    """Return why transformers can't load a model, and the next step."""
    text = str(error)
    if isinstance(error, ImportError) and "sentencepiece" in text.lower():
        return "its tokenizer needs sentencepiece: pip install 'knnstore[seq2seq]'"
    if "trust_remote_code" in text:
        return "it needs Python code from its folder, which knnstore doesn't run: give an LM that transformers supports"
    quantisation = read_config(folder).get("quantization_config")
    if isinstance(quantisation, dict):
        method = str(quantisation.get("quant_method", "some method"))[:40]
        return f"it is quantised ({method}), and {_first_line(error)}; install that, or give the model unquantised"
    return _first_line(error)


def model_task(model: str) -> str:
    """Return ``causal`` or ``seq2seq`` from the configuration of a model given by name, hub id or folder."""
    folder = resolve_model(model)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    require_plausible(folder)
    with _loading(model, folder):
        return task_of_config(load_config(folder))


def task_of_config(config: Any) -> str:
    """Return ``causal``, or ``seq2seq`` for the config of an encoder-decoder model."""
    return "seq2seq" if getattr(config, "is_encoder_decoder", False) else "causal"


def adopt_model(model: Any, tokenizer: Any = None) -> LoadedModel:
    """Return an LM in memory, or the one inside a wrapper, unchanged; only its keys identify it.

    Raises ModelError if it isn't an LM or is in training mode, in which dropout changes the keys at every pass.
    """
    model = unwrapped(model)
    if model.training:
        raise ModelError(
            f"{type(model).__name__} is in training mode, where dropout spoils the keys: call model.eval()"
        )
    name = Path(model.name_or_path).name or type(model).__name__
    identity = ModelIdentity(name, "", "", "", int(model.config.get_text_config().vocab_size))
    return LoadedModel(model, tokenizer, identity, Path(), input_device(model), str(model.dtype).removeprefix("torch."))


def _fuse_activations(model: Any) -> Any:
    """Replace GPT-2's tanh GELU by torch's fused one: the same function, and the whole LM is a tenth faster."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


def _rows(embedding: Any) -> int:
    """Return the rows of an embedding or the outputs of a head; 0 if unknown."""
    weight = getattr(embedding, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else 0


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        probe = torch.ones(1, device=device)
        probe.item()  # fails on a device without data: meta
    except Exception as error:  # backends raise all kinds of errors
        remedy = f"{_first_line(error)}; give auto, cpu or cuda"
        raise ModelError.about("device", device[:40], remedy=remedy) from error
    return probe.device


def _dtype(spec: LmSpec, device: torch.device) -> str:
    if spec.dtype != "auto":
        if spec.dtype not in DTYPES:
            dtypes = ("auto", *DTYPES)
            remedy = f"give one of {', '.join(dtypes)}"
            raise ModelError.about("dtype", spec.dtype, limit=dtypes, remedy=remedy, quoted=True)
        return spec.dtype
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "float32"


def cpu_has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 natively (AVX512-BF16 or AMX); otherwise float32 is faster."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported()) if supported is not None else False


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
