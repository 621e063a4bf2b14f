"""What wraps an LM: its forward pass and its generate() both give the mixture, or it is refused by name."""

import copy
import pickle
import runpy
import shutil
import types

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, pipeline

import knnstore
from knnstore.errors import ModelError
from knnstore.lm.keylayer import find_key_point
from knnstore.lm.loading import adopt_model

SETTING = {"k": 16, "lambda_": 0.9, "temperature": 10.0}
TEXT = "Objects are Python's abstraction for data . All data"


@pytest.fixture
def model(loaded):
    """A copy that a test may wrap, quantise or offload."""
    return copy.deepcopy(loaded)


@pytest.fixture(scope="module")
def inputs(tokenizer):
    return tokenizer(TEXT, return_tensors="pt")


class Speech:
    """What an LM says after a text, alone and with the store."""

    def __init__(self, loaded, store, inputs, tokenizer):
        self._inputs, self._tokenizer = inputs, tokenizer
        self.alone = self.of(loaded)
        with knnstore.attach(loaded, store, **SETTING):
            self.mixture = self.of(loaded)
        assert self.alone[1:] != self.mixture[1:]

    def of(self, model):
        """Logits, and from what can generate also greedy text, beams and a pipeline's text."""
        with torch.inference_mode():
            logits = model(**self._inputs).logits
        if not hasattr(model, "generate"):
            return [logits]
        options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
        texts = [
            model.generate(**self._inputs, **options, num_beams=beams, pad_token_id=0)[0].tolist() for beams in (1, 2)
        ]
        if model.device.type == "meta":  # a pipeline would move it
            return [logits, *texts]
        writer = pipeline("text-generation", model=model, tokenizer=self._tokenizer)
        return [logits, *texts, writer(TEXT, **options, return_full_text=False)[0]["generated_text"]]


def same(these, those):
    return torch.allclose(these[0], those[0], atol=1e-3, rtol=1e-3) and these[1:] == those[1 : len(these)]


@pytest.fixture(scope="module")
def speech(loaded, store, inputs, tokenizer):
    return Speech(loaded, store, inputs, tokenizer)


def with_adapters(model, kind="LoraConfig", **more):
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install 'knnstore[test]'")
    settings = {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True} if kind == "LoraConfig" else more
    return peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **settings)).eval()


def offloaded(model):
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate: pip install 'knnstore[eval]'")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def dispatched(model):
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate: pip install 'knnstore[eval]'")
    return accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


WRAPPERS = {
    "adapters": with_adapters,
    "DataParallel": nn.DataParallel,
    "offloaded": offloaded,
    "device map": dispatched,
}


@pytest.fixture(autouse=True)
def _no_compiled_code_is_left():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", WRAPPERS)
def test_all_that_a_wrapper_says_is_the_mixtures_until_it_is_detached(model, store, speech, name):
    wrapper = WRAPPERS[name](model)
    with knnstore.attach(wrapper, store, **SETTING):
        assert same(speech.of(wrapper), speech.mixture)
    assert same(speech.of(wrapper), speech.alone)


@pytest.mark.parametrize("name", ["adapters", "offloaded"])
def test_an_lm_that_is_wrapped_while_it_is_attached_gives_the_mixture(model, store, speech, name):
    with knnstore.attach(model, store, **SETTING):
        wrapper = WRAPPERS[name](model)
        assert same(speech.of(wrapper), speech.mixture)
    assert same(speech.of(wrapper), speech.alone)


def test_a_compiled_lm_writes_the_mixtures_text(model, store, inputs, speech):
    wrapper = torch.compile(model, backend="eager")  # its forward pass: tests/lm/test_hooks.py, where models are small
    with knnstore.attach(wrapper, store, **SETTING):
        said = wrapper.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert said[0].tolist() == speech.mixture[1]


def test_a_wrapper_of_a_wrapper_gives_the_mixture(model, store, inputs, speech):
    wrapper = nn.DataParallel(with_adapters(model))
    with knnstore.attach(wrapper, store, **SETTING), torch.inference_mode():
        torch.testing.assert_close(wrapper(**inputs).logits, speech.mixture[0], atol=1e-3, rtol=1e-3)


def test_a_wrapper_and_its_lm_attached_one_after_the_other_are_mixed_twice(model, store, inputs):
    wrapper = nn.DataParallel(model)
    setting = SETTING | {"lambda_": 0.5}
    with knnstore.attach(model, store, **setting), knnstore.attach(model, store, **setting), torch.inference_mode():
        expected = model(**inputs).logits
    with knnstore.attach(model, store, **setting), knnstore.attach(wrapper, store, **setting), torch.inference_mode():
        torch.testing.assert_close(wrapper(**inputs).logits, expected, atol=1e-3, rtol=1e-3)


def test_an_lm_in_eight_bits_gives_its_own_mixture(model, store, inputs):
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.inference_mode():
        alone = quantised(**inputs).logits
        with knnstore.attach(quantised, store, **SETTING | {"lambda_": 0.0}):
            assert torch.equal(quantised(**inputs).logits, alone)
        with knnstore.attach(quantised, store, **SETTING):
            mixed = quantised(**inputs).logits
    torch.testing.assert_close(mixed.logsumexp(-1), alone.logsumexp(-1))
    assert not torch.allclose(mixed, alone, atol=0.1)


def test_the_key_layer_of_an_lm_in_eight_bits_is_that_of_the_lm():
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
    )
    model = LlamaForCausalLM(config).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert find_key_point(quantised, "ffn-input").path == find_key_point(model, "ffn-input").path
    assert adopt_model(quantised).writable == adopt_model(model).writable == 64


class Holder(nn.Module):
    """A wrapper that nobody knows."""

    def __init__(self, model):
        super().__init__()
        self.backbone = model
        self.config = model.config

    def forward(self, *args, **kwargs):
        return self.backbone(*args, **kwargs)

    def generate(self, *args, **kwargs):
        return self.backbone.generate(*args, **kwargs)

    def get_output_embeddings(self):
        return self.backbone.get_output_embeddings()


class FullyShardedDataParallel(nn.Module):
    """Named as the one of torch, which needs a process group."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


def sharded(model):
    model.transformer.h[0] = FullyShardedDataParallel(model.transformer.h[0])
    return model


def scripted(_model):
    return torch.jit.script(nn.Linear(2, 2))


def on_meta(model):
    return model.to("meta")


REFUSED = {
    "unknown": (Holder, r"Holder wraps an LM, .* give its \.backbone \(GPT2LMHeadModel\)"),
    "in another": (lambda model: nn.DataParallel(Holder(model)), r"DataParallel wraps a Holder: .* its \.backbone"),
    "not a module": (lambda model: types.SimpleNamespace(llm=model), r"SimpleNamespace wraps an LM, .* its \.llm"),
    "torch.jit": (scripted, "RecursiveScriptModule is compiled by TorchScript, .* the LM that was compiled"),
    "FSDP": (sharded, "GPT2LMHeadModel holds a sharded LM"),
    "no weights": (on_meta, r"GPT2LMHeadModel has no weights, only their shapes \(device meta\)"),
    "no head": (lambda model: model.transformer, "GPT2Model isn't a causal or encoder-decoder language model"),
    "nothing": (lambda model: None, "NoneType isn't a causal or encoder-decoder language model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_to_reach_the_store_is_refused_by_name(model, store, name):
    wrap, told = REFUSED[name]
    wrapper = wrap(model)
    with pytest.raises(ModelError, match=told):
        knnstore.attach(wrapper, store, **SETTING)


@pytest.fixture
def reported(built, shared, tmp_path, monkeypatch, capsys):
    """``reported(name)``: what a script of ``../shared/reports`` prints beside a store ``s``."""
    shutil.copytree(built[0] / "books.knnstore", tmp_path / "s.knnstore")
    monkeypatch.chdir(tmp_path)

    def run(name):
        script = shared / "reports" / name
        if not script.is_file():
            pytest.skip(f"needs {script}, which is not beside this checkout")
        runpy.run_path(str(script))
        return capsys.readouterr().out

    return run


def test_penalties_at_a_weight_of_0_leave_the_lms_text(reported):
    assert [line.rpartition(" ")[2] for line in reported("penalties.py").splitlines()] == ["same"] * 3


@pytest.mark.slow
def test_the_wrappers_that_were_reported_write_the_mixtures_text(reported):
    said = dict(line.rsplit(" ", 1) for line in reported("attach_wrappers.py").splitlines() if line.endswith("mixture"))
    assert said.keys() >= {"torch.compile(model)", "dynamic int8", "offloaded"}


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_before_the_text_are_refused(model, store, kind):
    wrapper = with_adapters(model, kind, num_virtual_tokens=4)
    with pytest.raises(ModelError, match=r"virtual tokens .* \(P\w+_TUNING\).* model\.get_base_model\(\)"):
        knnstore.attach(wrapper, store, **SETTING)


def test_a_pipeline_is_refused_by_the_name_of_its_model(model, store, tokenizer):
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    with pytest.raises(ModelError, match=r"TextGenerationPipeline wraps an LM, .* its \.model \(GPT2LMHeadModel\)"):
        knnstore.attach(writer, store, **SETTING)


def test_what_an_lm_raises_when_it_is_run_is_told_in_a_sentence(model, store):
    model.transformer.h[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel can't be run on token ids \(division by zero\)"):
        knnstore.attach(model, store, **SETTING)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_an_attached_lm_is_copied_only_when_it_is_detached(model, store, inputs, copied):
    attached = knnstore.attach(model, store, **SETTING)
    with pytest.raises(ModelError, match="can't be copied or pickled while a store is attached"):
        copied(model)
    attached.detach()
    copied(model)


def test_the_lm_of_a_wrapper_is_adopted_itself():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=2, n_layer=1, vocab_size=60)).eval()
    assert adopt_model(nn.DataParallel(torch.compile(model, backend="eager"))).model is model
