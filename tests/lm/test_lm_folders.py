"""Folders that are given as a model: incomplete ones, other formats, and configs that can't belong to their weights."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
)

from knnstore.errors import ModelError
from knnstore.lm.loading import LoadedModel, load_model
from knnstore.lm.newer import load_config
from knnstore.lm.spec import SHIPPED_MODELS, LmSpec, resolve_model

WIKI = SHIPPED_MODELS / "wiki-lm"
SIZES = {"vocab_size": 8192, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """A tiny Llama with a head of its own. Read only."""
    folder = tmp_path_factory.mktemp("models") / "untied"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(WIKI).save_pretrained(folder)
    return folder


@pytest.fixture
def changed(untied, tmp_path):
    """``changed(change)``: a copy of the tiny Llama with other weights, or ``**settings`` in its config."""

    def change(weights=lambda tensors: None, **settings):
        folder = shutil.copytree(untied, tmp_path / "changed")
        tensors = load_file(folder / "model.safetensors")
        weights(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return change


def refusal(folder, **spec):
    with pytest.raises(ModelError) as caught:
        load_model(LmSpec(str(folder), **spec))
    message = str(caught.value)
    assert "\n" not in message
    return message


# Incomplete checkpoints


def test_a_missing_head_is_refused_by_name(changed):
    assert "lacks lm_head.weight" in refusal(changed(lambda tensors: tensors.pop("lm_head.weight")))


def test_a_body_without_its_prefix_and_head_is_refused_too(untied, tmp_path):
    LlamaForCausalLM.from_pretrained(untied).model.save_pretrained(tmp_path / "body")
    AutoTokenizer.from_pretrained(WIKI).save_pretrained(tmp_path / "body")
    assert "lacks lm_head.weight" in refusal(tmp_path / "body")


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_any_missing_weight_is_refused_by_name(changed, name):
    assert f"lacks {name}" in refusal(changed(lambda tensors: tensors.pop(name)))


def test_many_missing_weights_are_counted(changed):
    def drop(tensors):
        for name in [name for name in tensors if "layers.1" in name]:
            tensors.pop(name)

    assert "and 6 more" in refusal(changed(drop))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.mlp.down_proj.weight"])
def test_a_weight_of_another_shape_is_refused_by_name(changed, name):
    def cut(tensors):
        tensors[name] = tensors[name][:, :-1].contiguous()

    assert f"has another shape of {name}" in refusal(changed(cut))


def test_tied_weights_and_weights_that_nobody_asked_for_are_fine(changed):
    def tie(tensors):
        tensors.pop("lm_head.weight")
        tensors["something.extra"] = torch.zeros(3)

    model = load_model(LmSpec(str(changed(tie, tie_word_embeddings=True)))).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_encoder_decoder_model_without_a_part_is_refused_by_name(tmp_path):
    config = BartConfig(
        vocab_size=8192, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(WIKI).save_pretrained(tmp_path)
    assert load_model(LmSpec(str(tmp_path), "decoder-ffn-input")).task == "seq2seq"
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.decoder.layers.0.fc1.weight"
    tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_model.cache_clear()
    assert f"lacks {name}" in refusal(tmp_path, layer="decoder-ffn-input")


# Other formats


def folder_of(path, *names, **contents):
    path.mkdir(parents=True)
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"...")
    for name, text in contents.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


ADAPTER = {"adapter_config__json": json.dumps({"base_model_name_or_path": "org/base"})}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
INDEX = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}})
FOLDERS = {
    "an adapter": (["adapter_model.safetensors"], ADAPTER, r"adapter \(LoRA\) for org/base.*merge_and_unload"),
    "an adapter with a config": (["model.safetensors"], ADAPTER | {"config__json": "{}"}, "merge_and_unload"),
    "gguf": (["lm.Q4_K_M.gguf"], {}, r"GGUF.*gguf_file='lm.Q4_K_M.gguf'"),
    "gguf with a config": (["lm.gguf"], {"config__json": "{}"}, "GGUF"),
    "a pickle": (["pytorch_model.bin"], {"config__json": "{}"}, r"pytorch_model\.bin.*pickles.*save_pretrained"),
    "a pickle without a config": (["lm.pt"], {}, r"lm\.pt.*pickles.*save_pretrained"),
    "onnx": (["onnx/model.onnx"], {"config__json": "{}"}, r"ONNX.*model\.onnx"),
    "tensorflow": (["tf_model.h5"], {"config__json": "{}"}, r"TensorFlow.*tf_model\.h5"),
    "a diffusion pipeline": ([], {"model_index__json": "{}"}, "pipeline of diffusers"),
    "a missing shard": (
        ["model-1-of-2.safetensors"],
        {"config__json": "{}", "model.safetensors.index__json": INDEX},
        r"lacks 1 of 2 weight files \(model-2-of-2\.safetensors\)",
    ),
    "pointers": ([], {"config__json": "{}", "model__safetensors": POINTER}, r"model\.safetensors is a pointer.*lfs"),
    "a tokenizer alone": (["tokenizer.json", "vocab.json"], {}, "holds a tokenizer but no LM"),
    "a config alone": ([], {"config__json": "{}"}, "nor any others"),
    "a folder of checkpoints": ([], {}, r"training checkpoints.*checkpoint-20"),
    "a folder of the hub's cache": ([], {}, r"hub's cache: give .*abc"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_no_lm_is_told_what_it_is_and_what_to_do(kind, tmp_path):
    names, contents, told = FOLDERS[kind]
    folder = folder_of(tmp_path / "lm", *names, **contents)
    inside = {"a folder of checkpoints": "checkpoint-20", "a folder of the hub's cache": "snapshots/abc"}
    if kind in inside:
        (folder / inside[kind]).parent.mkdir(exist_ok=True)
        folder_of(folder / inside[kind], "model.safetensors", config__json="{}")
    with pytest.raises(ModelError, match=f"^model .*lm.*{told}") as caught:
        resolve_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_file_is_told_apart_from_the_folder_that_it_is_in(tmp_path):
    folder_of(tmp_path / "lm", "lm.gguf", "model.safetensors", config__json="{}")
    with pytest.raises(ModelError, match="GGUF"):
        resolve_model(str(tmp_path / "lm" / "lm.gguf"))
    with pytest.raises(ModelError, match=f"is a file.*give {tmp_path / 'lm'}$"):
        resolve_model(str(tmp_path / "lm" / "model.safetensors"))


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "a/b/c/d", "../../.."])
def test_a_name_that_no_model_can_have_is_one_sentence(name):
    with pytest.raises(ModelError) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


def test_a_quantised_model_whose_library_is_missing_is_told_so(changed):
    folder = changed(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    assert "quantised (gptq)" in refusal(folder)


def test_a_model_that_writes_no_text_is_told_so(changed):
    assert "of the family vit, which isn't a text-generating" in refusal(changed(model_type="vit"))


def test_code_of_a_folder_is_not_asked_for(changed):
    told = refusal(changed(model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Lm"}))
    assert "knnstore doesn't run" in told
    assert "trust_remote_code" not in told


# Configs that can't belong to the weights


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 10**5},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": 2.5},
        {"max_position_embeddings": 2**29},
        {"hidden_size": 10**9},
        {"hidden_size": 2**16},
        {"vocab_size": 2**40},
        {"vocab_size": -8192},
        {"intermediate_size": 10**6},
        {"num_attention_heads": "many"},
        {"num_attention_heads": 10**12},
        {"num_attention_heads": 0},
        {"vocab_size": True},
    ],
    ids=str,
)
def test_a_config_that_cannot_be_that_of_the_weights_is_refused_within_seconds(changed, settings):
    folder = changed(**settings)
    started = time.process_time()
    assert "config.json" in refusal(folder) or "can't be loaded" in refusal(folder)
    assert time.process_time() - started < 30  # not hours, which it would take to build


@pytest.mark.parametrize(
    "settings", [{"n_layer": 10**5}, {"n_positions": 2**29}, {"n_positions": 2**22}, {"n_embd": 2**17}]
)
def test_a_config_of_gpt2s_names_is_held_against_its_weights_too(tmp_path, settings):
    folder = shutil.copytree(WIKI, tmp_path / "lm")
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"model_type": 3}'])
def test_a_config_that_is_no_config_is_one_sentence(changed, text):
    folder = changed()
    (folder / "config.json").write_text(text)
    assert "can't be loaded" in refusal(folder)


def test_a_device_that_holds_no_numbers_is_refused():
    assert refusal(WIKI, device="meta").startswith("device='meta': ")


# What newer versions of transformers write


def test_a_tokenizer_of_a_class_that_this_version_lacks_is_read_from_its_file(untied, tmp_path, monkeypatch):
    def lacking(*_, **__):
        raise ValueError("Tokenizer class TokenizersBackend does not exist or is not currently imported.")

    expected = load_model(LmSpec(str(untied))).identity
    load_model.cache_clear()
    monkeypatch.setattr("knnstore.lm.newer.AutoTokenizer.from_pretrained", lacking)
    assert load_model(LmSpec(str(untied))).identity == expected


def test_rotary_settings_that_an_older_version_would_pass_over_are_translated(changed, monkeypatch):
    monkeypatch.setattr("knnstore.lm.newer._IS_OLD", True)
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    config = load_config(changed(rope_parameters=rope))
    assert config.rope_theta == 5e5
    assert config.rope_scaling["factor"] == 4.0


def test_rotary_settings_that_cannot_be_translated_are_refused(changed, monkeypatch):
    rope = {"rope_type": "default", "rope_theta": 5e5}
    folder = changed(rope_parameters={"full_attention": rope, "sliding_attention": rope})
    monkeypatch.setattr("knnstore.lm.newer._IS_OLD", True)
    monkeypatch.setattr("knnstore.lm.newer.AutoConfig.from_pretrained", lambda *_, **__: LlamaConfig(**SIZES))
    with pytest.raises(ModelError, match="pip install --upgrade transformers"):
        load_config(folder)


# Tokens that the embedding lacks


@pytest.fixture(scope="module")
def with_added(untied, tmp_path_factory):
    """The tiny Llama with a token in its tokenizer that its embedding has no row for."""
    folder = shutil.copytree(untied, tmp_path_factory.mktemp("models") / "added")
    tokenizer = AutoTokenizer.from_pretrained(WIKI)
    tokenizer.add_tokens(["<|user|>"])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_token_without_an_embedding_is_named_where_a_text_has_it(with_added):
    loaded = load_model(LmSpec(str(with_added)))
    assert len(loaded.tokenise("said hello"))
    for tokenise in (loaded.tokenise, loaded.tokenise_source, loaded.tokenise_target):
        with pytest.raises(ModelError, match=r"'<\|user\|>', token 8192 .*resize_token_embeddings\(8193\)"):
            tokenise("A <|user|> said hello.")


# Multimodal models


def test_the_longest_context_is_that_of_the_text_model():
    config = Gemma3Config(
        text_config=SIZES | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64},
        vision_config={"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16},
    )
    model = SimpleNamespace(config=config)
    assert LoadedModel(model, None, None, None, None, "float32").longest_context == 64
