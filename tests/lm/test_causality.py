"""Models whose states know the tokens that follow are refused; causal ones of every family pass, in every dtype."""

import pytest
import torch
from families import FAMILIES, tiny_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    GitConfig,
    GitForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from knnstore.datastore.manifest import ModelIdentity
from knnstore.errors import ModelError
from knnstore.lm.causality import require_causal
from knnstore.lm.forward import KeyModel
from knnstore.lm.loading import LoadedModel

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64}
BART = {"vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "max_position_embeddings": 32}
BART |= {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("ffn_dim", 16), ("attention_heads", 2))
}


def key_model(model, layer="ffn-input"):
    identity = ModelIdentity("tiny", "", "", "", 64)
    return KeyModel(LoadedModel(model.eval(), None, identity, None, torch.device("cpu"), "float32"), layer)


@pytest.mark.parametrize("name", FAMILIES)
def test_causal_models_of_every_family_pass_in_every_dtype(name):
    try:
        model = tiny_model(name)
    except ValueError as error:
        pytest.skip(f"this transformers has no {name}: {error}")
    for dtype in (torch.float32, torch.bfloat16):
        require_causal(key_model(model.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", ["ffn-input", "attention-input", "hidden"])
def test_attention_to_what_follows_is_refused_at_every_layer(layer, dtype):
    torch.manual_seed(0)
    model = BertLMHeadModel(BertConfig(**SIZES)).to(dtype)
    with pytest.raises(ModelError, match=r"tiny \(BertLMHeadModel\) isn't causal: .*is_decoder"):
        require_causal(key_model(model, layer))


def test_the_same_attention_with_its_mask_passes():
    require_causal(key_model(BertLMHeadModel(BertConfig(**SIZES, is_decoder=True))))


def test_a_permutation_lm_is_refused():
    torch.manual_seed(0)
    model = XLNetLMHeadModel(XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48, vocab_size=64))
    with pytest.raises(ModelError, match="isn't causal"):
        require_causal(key_model(model))


def test_decoders_that_read_a_source_pass_and_those_without_a_mask_are_refused(monkeypatch):
    torch.manual_seed(0)
    require_causal(
        key_model(
            SwitchTransformersForConditionalGeneration(
                SwitchTransformersConfig(
                    d_model=16, d_ff=16, d_kv=8, num_layers=2, num_heads=2, num_experts=4, vocab_size=64,
                    decoder_start_token_id=0,
                )
            ),
            "decoder-ffn-input",
        )
    )  # fmt: skip
    model = BartForConditionalGeneration(BartConfig(**BART))
    require_causal(key_model(model, "decoder-ffn-input"))
    seeing = BartForConditionalGeneration(BartConfig(**BART))
    for layer in seeing.model.decoder.layers:
        attention = layer.self_attn.forward

        def unmasked(*args, attention=attention, **kwargs):
            kwargs["attention_mask"] = torch.zeros(1, 1, 4, 4)
            return attention(*args, **kwargs)

        layer.self_attn.forward = unmasked
    with pytest.raises(ModelError, match="isn't causal"):
        require_causal(key_model(seeing, "decoder-ffn-input"))


def test_eight_bit_activations_that_share_a_scale_pass():
    model = torch.ao.quantization.quantize_dynamic(tiny_model("llama"), {torch.nn.Linear}, dtype=torch.qint8)
    states = key_model(model)
    require_causal(states)


def test_the_keys_of_a_model_that_also_sees_are_those_of_its_text():
    vision = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model = key_model(GitForCausalLM(GitConfig(**SIZES, vision_config=vision, max_position_embeddings=32)))
    assert model.point.path == "git.encoder.layer.1.intermediate"
    require_causal(model)
