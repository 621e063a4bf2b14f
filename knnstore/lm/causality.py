"""Check that a model is causal: if states depended on later tokens, keys would know what they predict."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from knnstore.errors import ModelError
from knnstore.lm.sources import SourceBatch

if TYPE_CHECKING:
    from knnstore.lm.forward import KeyModel

# Few tokens, so that the last one has a large effect on each state of a model that isn't causal.
_TOKENS = 4
# Smallest relative change of a state that counts as dependence: far above float32 rounding, far below attention.
_LEAST_SHARE = 1e-4


def require_causal(model: "KeyModel") -> None:
    """Raise ModelError if an earlier state of the model depends on a later token, as in BERT without a mask.

    A few random tokens are read twice, with different last tokens. In a causal model earlier states don't change,
    except for rounding when a mixture of experts sorts its tokens differently.
    """
    loaded = model.loaded
    most = min(loaded.readable, loaded.writable)
    if loaded.longest_context < _TOKENS or most < 2 * _TOKENS:  # too small to test or to be useful
        return
    ids = np.random.default_rng(0).permutation(most)[: 2 * _TOKENS].astype(np.int64)
    original, altered = ids[None, :_TOKENS], ids[None, :_TOKENS].copy()
    altered[0, -1] = ids[-1]
    source = SourceBatch.of([ids[_TOKENS:]], loaded.pad) if loaded.task == "seq2seq" else None
    states, changed = (model.keys(tokens, source)[0, :-1].double() for tokens in (original, altered))
    shares = (changed - states).norm(dim=-1) / states.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    share = float(shares.median())
    if share > _rounding(loaded.model):
        raise ModelError(
            f"model {loaded.identity.name} ({type(loaded.model).__name__}) isn't causal: a relative "
            f"change of {share:.2g} in its states follows from a later token, so keys would know the answer; give a "
            "causal LM such as GPT-2 or Llama (of BERT's family, one trained with is_decoder)"
        )


def _rounding(model: Any) -> float:
    """Return the relative change of a state that may be rounding; it grows with the root of the number of roundings.

    Equal products give equal bits, whatever the other rows are. Only a mixture of experts computes other products when
    a token is routed to another expert, and 8-bit activations share a scale.
    """
    names = [f"{name} {type(module).__module__}" for name, module in model.named_modules()]
    if any("quantized" in name for name in names):
        unit = 2**-8
    elif any("expert" in name for name in names) and model.dtype.is_floating_point:
        unit = torch.finfo(model.dtype).eps / 2
    else:
        return _LEAST_SHARE
    blocks = int(getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 1) or 1)
    return max(_LEAST_SHARE, unit * math.sqrt(2 * blocks + 1))
