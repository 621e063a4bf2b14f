"""A tiny random LM of every family, and where its keys lie, found by hand."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
SIZES |= {"max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2}
WIDE = SIZES | {"intermediate_size": 48}
LLAMA = ("model.layers.1.mlp", "model.layers.1.self_attn")

# family: its sizes, the module whose input is the key, and the last block's attention
FAMILIES = {
    "gpt2": (SIZES, "transformer.h.1.mlp", "transformer.h.1.attn"),
    "gpt_neo": (
        SIZES | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "transformer.h.1.mlp",
        "transformer.h.1.attn",
    ),
    "gpt_neox": (WIDE, "gpt_neox.layers.1.mlp", "gpt_neox.layers.1.attention"),
    "gptj": (SIZES | {"rotary_dim": 4}, "transformer.h.1.mlp", "transformer.h.1.attn"),
    "gpt_bigcode": (SIZES, "transformer.h.1.mlp", "transformer.h.1.attn"),
    "opt": (
        SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        "model.decoder.layers.1.fc1",
        "model.decoder.layers.1.self_attn",
    ),
    "xglm": (SIZES | {"d_model": 32, "ffn_dim": 48, "attention_heads": 4}, "model.layers.1.fc1", LLAMA[1]),
    "bloom": (SIZES | {"n_layer": 2, "n_head": 4}, "transformer.h.1.mlp", "transformer.h.1.self_attention"),
    "falcon": (SIZES, "transformer.h.1.mlp", "transformer.h.1.self_attention"),
    "phi": (WIDE, *LLAMA),
    "phi3": (GATED, *LLAMA),
    "llama": (GATED, *LLAMA),
    "mistral": (GATED, *LLAMA),
    "qwen2": (GATED, *LLAMA),
    "qwen3": (GATED | {"head_dim": 8}, *LLAMA),
    "gemma": (GATED | {"head_dim": 8}, *LLAMA),
    # logits soft-capped, at a cap that these tiny logits feel; attention as well
    "gemma2": (GATED | {"head_dim": 8, "final_logit_softcapping": 0.05}, *LLAMA),
    "gemma3_text": (GATED | {"head_dim": 8, "sliding_window": 8}, *LLAMA),
    # logits scaled
    "granite": (GATED | {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}, *LLAMA),
    "cohere": (GATED | {"logit_scale": 0.25}, *LLAMA),
    "olmo": (GATED, *LLAMA),
    "olmo2": (GATED, *LLAMA),
    "stablelm": (GATED, *LLAMA),
    "starcoder2": (GATED, *LLAMA),
    # heads that are not the embeddings, and that are
    "llama untied": (GATED | {"tie_word_embeddings": False}, *LLAMA),
    "llama tied": (GATED | {"tie_word_embeddings": True}, *LLAMA),
    "mpt": (
        SIZES | {"d_model": 32, "n_heads": 4, "n_layers": 2},
        "transformer.blocks.1.ffn",
        "transformer.blocks.1.attn",
    ),
    "mixtral": (GATED | {"num_local_experts": 2}, "model.layers.1.mlp|block_sparse_moe", LLAMA[1]),
    "qwen2_moe": (
        GATED | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        *LLAMA,
    ),
    "mamba": (SIZES | {"state_size": 4}, None, None),
    "mamba2": (SIZES | {"state_size": 4, "head_dim": 8, "num_heads": 8, "n_groups": 1, "expand": 2}, None, None),
}


def tiny_model(name):
    """A random LM of a family, the same each time. Raises ValueError where transformers has none of that name."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **FAMILIES[name][0])
    return AutoModelForCausalLM.from_config(config).eval()


def module_at(model, path):
    """The module at a path whose last name has alternatives by |."""
    parent, _, names = path.rpartition(".")
    block = model.get_submodule(parent)
    return next(getattr(block, name) for name in names.split("|") if hasattr(block, name))
