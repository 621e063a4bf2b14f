"""The key point is found by structure, in every family of LMs: held against a hook written by hand."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from knnstore.datastore.manifest import ModelIdentity
from knnstore.errors import ModelError
from knnstore.lm.forward import KeyModel
from knnstore.lm.keylayer import find_key_point
from knnstore.lm.loading import LoadedModel

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
SIZES |= {"max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2}
WIDE = SIZES | {"intermediate_size": 48}

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
    "opt": (
        SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        "model.decoder.layers.1.fc1",
        "model.decoder.layers.1.self_attn",
    ),
    "bloom": (SIZES | {"n_layer": 2, "n_head": 4}, "transformer.h.1.mlp", "transformer.h.1.self_attention"),
    "falcon": (SIZES, "transformer.h.1.mlp", "transformer.h.1.self_attention"),
    "phi": (WIDE, "model.layers.1.mlp", "model.layers.1.self_attn"),
    "llama": (GATED, "model.layers.1.mlp", "model.layers.1.self_attn"),
    "mistral": (GATED, "model.layers.1.mlp", "model.layers.1.self_attn"),
    "qwen2": (GATED, "model.layers.1.mlp", "model.layers.1.self_attn"),
    "gemma": (GATED | {"head_dim": 8}, "model.layers.1.mlp", "model.layers.1.self_attn"),
    "gemma2": (GATED | {"head_dim": 8}, "model.layers.1.mlp", "model.layers.1.self_attn"),
    "olmo2": (GATED, "model.layers.1.mlp", "model.layers.1.self_attn"),
    "mpt": (
        SIZES | {"d_model": 32, "n_heads": 4, "n_layers": 2},
        "transformer.blocks.1.ffn",
        "transformer.blocks.1.attn",
    ),
    "mixtral": (GATED | {"num_local_experts": 2}, "model.layers.1.mlp|block_sparse_moe", "model.layers.1.self_attn"),
    "mamba": (SIZES | {"state_size": 4}, None, None),
}
IDS = np.random.default_rng(0).integers(1, 64, (3, 17))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    sizes, feed_forward, attention = FAMILIES[request.param]
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(request.param, **sizes)
    except ValueError as error:
        pytest.skip(f"this transformers has no {request.param}: {error}")
    return AutoModelForCausalLM.from_config(config).eval(), feed_forward, attention


def key_model(model, layer="ffn-input"):
    identity = ModelIdentity("tiny", "", "", "", 64)
    return KeyModel(LoadedModel(model, None, identity, None, torch.device("cpu"), "float32"), layer)


def by_hand(model, path, ids):
    """The input of the module at ``path`` (alternatives of its last name by |), and the logits, of a full pass."""
    parent, _, names = path.rpartition(".")
    block = model.get_submodule(parent)
    module = next(getattr(block, name) for name in names.split("|") if hasattr(block, name))
    seen = []

    def keep(_, args, kwargs):
        seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.inference_mode():
        output = model(input_ids=torch.from_numpy(ids), output_hidden_states=True)
    handle.remove()
    (states,) = seen
    return states.reshape(*ids.shape, -1), output.logits, output.hidden_states[-1]


def test_the_key_is_the_input_of_the_last_feed_forward_block(family):
    model, feed_forward, _ = family
    found = key_model(model)
    if feed_forward is None:
        assert found.point.layer == "hidden"
        return
    expected, _, _ = by_hand(model, feed_forward, IDS)
    assert found.point.layer == "ffn-input"
    assert torch.equal(found.keys(IDS), expected)


def test_the_attention_input_is_the_input_of_the_last_attention(family):
    model, _, attention = family
    if attention is None:
        with pytest.raises(ModelError, match="has no attention"):
            find_key_point(model, "attention-input")
        return
    expected, _, _ = by_hand(model, attention, IDS)
    assert torch.equal(key_model(model, "attention-input").keys(IDS), expected)


def test_hidden_is_the_models_output(family):
    model, _, _ = family
    with torch.inference_mode():
        expected = model.base_model(input_ids=torch.from_numpy(IDS)).last_hidden_state
    assert torch.equal(key_model(model, "hidden").keys(IDS), expected)


@pytest.mark.parametrize("layer", ["ffn-input", "hidden"])
def test_stopping_early_changes_no_bit_of_the_keys(family, layer):
    model, _, _ = family
    found = key_model(model, layer)
    keys, _ = found.keys_and_logits(IDS, 0)
    assert torch.equal(found.keys(IDS), keys)


@pytest.mark.parametrize("first", [0, 9, 16])
def test_the_logits_are_the_models_own_from_any_position_on(family, first):
    model, _, _ = family
    keys, logits = key_model(model).keys_and_logits(IDS, first)
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(IDS)).logits[:, first:]
    assert keys.shape[:2] == logits.shape[:2] == (3, 17 - first)
    torch.testing.assert_close(logits, expected)


def test_padding_on_the_right_does_not_change_a_key(family):
    model, _, _ = family
    found = key_model(model)
    padded = np.concatenate([IDS[:, :11], np.zeros((3, 6), np.int64)], axis=1)
    torch.testing.assert_close(found.keys(padded)[:, :11], found.keys(IDS[:, :11]))
    torch.testing.assert_close(found.keys(padded)[:, :11], found.keys(IDS)[:, :11])


def test_a_layer_that_nobody_knows_is_refused_with_the_list(family):
    with pytest.raises(ModelError, match="'logits' is none of ffn-input, attention-input, hidden"):
        find_key_point(family[0], "logits")
