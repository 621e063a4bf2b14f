"""An LM of transformers with a store attached: its own calls give the mixture, and afterwards nothing is left."""

import copy
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, pipeline

import knnstore
from knnstore.cli import main
from knnstore.datastore.edits import editing
from knnstore.errors import MismatchError, ModelError, UsageError
from knnstore.lm.spec import SHIPPED_MODELS
from knnstore.mixing.setting import Setting
from knnstore.scoring.tuned_record import Measured, TunedRecord, save_tuned
from knnstore.windows import cut_windows

SETTING = {"k": 16, "lambda_": 0.4, "temperature": 10.0}
PROMPTS = ["An assignment statement", "The", "Objects are Python's abstraction for data . All data"]


def by_hand(model, store, ids, *, k, lambda_, temperature):
    """ln p of every token after every position: a hook, an exact search and the two formulas, written out."""
    seen = []
    handle = model.transformer.h[-1].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        logits = model(ids).logits
    handle.remove()
    found = store.search(seen[0].flatten(0, 1), k, exact=True)
    weights = np.exp((found.distances[:, :1] - found.distances) / temperature).astype(np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    p_knn = np.zeros((len(weights), logits.shape[-1]))
    for line, (values, shares) in enumerate(zip(found.values, weights, strict=True)):
        np.add.at(p_knn[line], values, shares)
    p_lm = logits.double().softmax(-1).flatten(0, 1).numpy()
    return torch.from_numpy(np.log(lambda_ * p_knn + (1 - lambda_) * p_lm)).reshape(logits.shape)


@pytest.fixture(scope="module")
def ids(tokenizer):
    return tokenizer(PROMPTS[2], return_tensors="pt").input_ids


def test_the_logits_are_the_mixtures_log_probabilities_at_every_position(loaded, store, ids):
    expected = by_hand(loaded, store, ids, **SETTING)
    with torch.inference_mode():
        offset = loaded(ids).logits.logsumexp(-1)
        with knnstore.attach(loaded, store, exact=True, **SETTING):
            logits = loaded(ids).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.log_softmax(-1).double(), expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(logits.logsumexp(-1), offset)


def test_the_perplexity_of_its_logits_is_that_of_score_on_the_same_windows(loaded, tokenizer, store, built):
    options = ["--exact", "--k", "16", "--lambda", "0.4", "--temperature", "10", "--dtype", "float32"]
    done = CliRunner().invoke(main, ["score", "--store", str(built[0] / "books"), "--json", "--quiet", *options])
    assert done.exit_code == 0, done.output
    scored = json.loads(done.stdout)
    (segment,), recipe = store.datastore.segments, store.datastore.manifest.key
    texts = [segment.heldout(int(document)) for document in segment.documents.heldout()]
    nats = 0.0
    with knnstore.attach(loaded, store, exact=True, **SETTING), torch.inference_mode():
        for text in texts:
            stream = torch.tensor([[tokenizer.bos_token_id, *text.tolist()]])
            windows = cut_windows(np.array([0]), np.array([len(text)]), context=recipe.context, stride=recipe.stride)
            for start, length, scored_here in zip(windows.start, windows.length, windows.scored, strict=True):
                log_p = loaded(stream[:, start : start + length]).logits[0, -scored_here:].log_softmax(-1)
                targets = stream[0, start + length - scored_here + 1 : start + length + 1]
                nats -= float(log_p.gather(1, targets[:, None]).double().sum())
    assert np.exp(nats / scored["tokens"]) == pytest.approx(scored["knn"]["perplexity"], rel=2e-4)
    assert scored["knn"]["perplexity"] < 0.9 * scored["base"]["perplexity"]


# Generating


def generate(model, tokenizer, prompts, side="left", **options):
    tokenizer.padding_side = side
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    length = batch.input_ids.shape[1]
    options = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None} | options
    out = model.generate(**batch, **options)
    return out[:, length:].tolist()


def test_greedy_search_takes_the_mixtures_best_token_step_by_step(loaded, tokenizer, store, ids):
    with knnstore.attach(loaded, store, **SETTING), torch.inference_mode():
        grown = ids
        for _ in range(8):
            grown = torch.cat([grown, loaded(grown).logits[:, -1:].argmax(-1)], dim=1)
        cached = generate(loaded, tokenizer, PROMPTS[2:], do_sample=False)
        assert generate(loaded, tokenizer, PROMPTS[2:], do_sample=False, use_cache=False) == cached
    assert cached == grown[:, ids.shape[1] :].tolist()
    assert cached != generate(loaded, tokenizer, PROMPTS[2:], do_sample=False)


def test_a_batch_padded_on_the_left_says_what_each_prompt_says_alone(loaded, tokenizer, store):
    with knnstore.attach(loaded, store, **SETTING):
        together = generate(loaded, tokenizer, PROMPTS, do_sample=False)
        alone = [generate(loaded, tokenizer, [prompt], do_sample=False)[0] for prompt in PROMPTS]
    assert together == alone


def test_beams_and_samples_are_drawn_from_the_mixture(loaded, tokenizer, store):
    with knnstore.attach(loaded, store, **SETTING):
        beams = generate(loaded, tokenizer, PROMPTS, num_beams=3, do_sample=False)
        assert generate(loaded, tokenizer, PROMPTS, num_beams=3, do_sample=False, use_cache=False) == beams
        torch.manual_seed(0)
        sampled = generate(loaded, tokenizer, PROMPTS[2:], do_sample=True, num_return_sequences=64, max_new_tokens=1)
        first = loaded(tokenizer(PROMPTS[2:], return_tensors="pt").input_ids).logits[0, -1].detach().softmax(-1)
    best = int(first.argmax())
    drawn = np.mean([line[0] == best for line in sampled])
    assert abs(drawn - float(first[best])) < 4 * np.sqrt(0.25 / 64)


def test_a_pipeline_speaks_for_the_mixture(loaded, tokenizer, store):
    writer = pipeline("text-generation", model=loaded, tokenizer=tokenizer)
    options = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False, "eos_token_id": None}
    with knnstore.attach(loaded, store, **SETTING):
        (said,) = writer(PROMPTS[2], **options)
        (expected,) = generate(loaded, tokenizer, PROMPTS[2:], do_sample=False)
    assert said["generated_text"] == tokenizer.decode(expected)


# What is asked of the store


def counted(steps):
    return [len(step.neighbours) for step in steps]


def test_the_store_is_asked_for_no_more_than_is_returned(loaded, tokenizer, store, ids):
    steps = []
    with knnstore.attach(loaded, store, **SETTING, on_step=steps.append), torch.inference_mode():
        generate(loaded, tokenizer, PROMPTS[2:], do_sample=False)
        assert counted(steps) == [1] * 8
        whole = loaded(ids).logits
        last = loaded(ids, logits_to_keep=3).logits
        some = loaded(ids, logits_to_keep=torch.tensor([4, 1])).logits
    assert counted(steps[8:]) == [ids.shape[1], 3, 2]
    # few queries are looked up, many are joined: their distances differ by what a compiled kernel may round
    torch.testing.assert_close(last, whole[:, -3:], rtol=1e-4, atol=5e-4)
    torch.testing.assert_close(some, whole[:, [4, 1]], rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_to_the_lm(loaded, tokenizer, store, side):
    tokenizer.padding_side = side
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    steps, text = [], batch.attention_mask.bool()
    with torch.inference_mode():
        alone = loaded(**batch).logits
        with knnstore.attach(loaded, store, **SETTING, on_step=steps.append):
            mixed = loaded(**batch).logits
    assert counted(steps) == [int(text.sum())]
    assert torch.equal(mixed[~text], alone[~text])
    assert not torch.isclose(mixed[text], alone[text]).all(-1).any()


def test_packed_texts_with_position_ids_are_what_each_is_alone(loaded, store):
    one, other = torch.arange(100, 106)[None], torch.arange(300, 305)[None]
    packed = {
        "input_ids": torch.cat([one, other], dim=1),
        "position_ids": torch.cat([torch.arange(6), torch.arange(5)])[None],
        "use_cache": False,  # what transformers takes to tell a packed batch
    }
    with knnstore.attach(loaded, store, **SETTING), torch.inference_mode():
        together = loaded(**packed).logits
        torch.testing.assert_close(together[:, :6], loaded(one).logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together[:, 6:], loaded(other).logits, atol=1e-4, rtol=1e-4)


def test_the_loss_is_the_mixtures_and_its_gradient_reaches_the_lm(loaded, store, ids):
    labels = ids.clone()
    labels[0, :2] = -100
    with knnstore.attach(loaded, store, **SETTING):
        output = loaded(ids, labels=labels)
        as_tuple = loaded(ids, labels=labels, return_dict=False)
        output.loss.backward()
    expected = torch.nn.functional.cross_entropy(output.logits[0, 1:-1], ids[0, 2:])
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(as_tuple[0], expected)
    assert torch.equal(as_tuple[1], output.logits)
    assert float(loaded.transformer.wte.weight.grad.abs().sum()) > 0
    loaded.zero_grad()


# Detaching


def traces(model):
    return {
        f"{name}.{kind}": list(hooks)
        for name, module in model.named_modules()
        for kind, hooks in vars(module).items()
        if "hooks" in kind
    }


def test_detaching_leaves_no_trace(loaded, store, ids):
    before, weights = traces(loaded), {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    attributes = set(vars(loaded))
    with torch.inference_mode():
        alone = loaded(ids).logits
        attached = knnstore.attach(loaded, store, **SETTING)
        assert not torch.equal(loaded(ids).logits, alone)
        attached.detach()
        attached.detach()
        with pytest.raises(ZeroDivisionError), knnstore.attach(loaded, store, **SETTING):
            loaded(ids)
            1 / 0  # noqa: B018
        assert torch.equal(loaded(ids).logits, alone)
    assert traces(loaded) == before
    assert set(vars(loaded)) == attributes
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())


def test_a_pass_that_fails_spoils_no_later_one(loaded, store, ids):
    with knnstore.attach(loaded, store, **SETTING), torch.inference_mode():
        expected = loaded(ids).logits
        with pytest.raises(IndexError):
            loaded(torch.tensor([[10**6]]))
        loaded.transformer(ids)  # the body alone is nobody's prediction
        assert torch.equal(loaded(ids).logits, expected)


def test_a_second_store_is_mixed_with_what_the_first_made(loaded, store, ids):
    with torch.inference_mode():
        alone = loaded(ids).logits
        with knnstore.attach(loaded, store, k=16, temperature=10.0, lambda_=0.5) as first:
            half = loaded(ids).logits
            second = knnstore.attach(loaded, store, k=16, temperature=10.0, lambda_=0.5)
            both = loaded(ids).logits
            first.detach()
            torch.testing.assert_close(loaded(ids).logits, half)
            second.detach()
        assert torch.equal(loaded(ids).logits, alone)
    p_knn = 2 * half.softmax(-1) - alone.softmax(-1)
    torch.testing.assert_close(both.softmax(-1), 0.5 * p_knn + 0.5 * half.softmax(-1), atol=1e-5, rtol=1e-3)


def test_several_threads_and_models_at_once_get_each_their_own(loaded, tokenizer, store):
    other = copy.deepcopy(loaded)
    jobs = [(loaded, text) for text in PROMPTS] + [(other, text) for text in PROMPTS]
    inputs = [tokenizer(text, return_tensors="pt").input_ids for _, text in jobs]
    with (
        knnstore.attach(loaded, store, **SETTING),
        knnstore.attach(other, store, **SETTING | {"lambda_": 0.8}),
        torch.inference_mode(),
    ):
        expected = [model(ids).logits for (model, _), ids in zip(jobs, inputs, strict=True)]
        results: dict[int, list[torch.Tensor]] = {}

        def work(number):
            with torch.inference_mode():
                results[number] = [jobs[number][0](inputs[number]).logits for _ in range(5)]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, logits in enumerate(expected):
        for result in results[number]:
            torch.testing.assert_close(result, logits)


# Which LM, and which setting


def test_half_precision_makes_the_stores_keys_well_enough(loaded, tokenizer, store, ids):
    half = copy.deepcopy(loaded).bfloat16()
    with torch.inference_mode(), knnstore.attach(half, store, **SETTING):
        logits = half(ids).logits
    assert logits.dtype == torch.float32
    with torch.inference_mode():
        alone = half(ids).logits.float()
        with knnstore.attach(half, store, **SETTING | {"lambda_": 0.0}):
            assert torch.equal(half(ids).logits, alone)


def test_an_lm_that_makes_other_keys_is_refused(loaded, store):
    torch.manual_seed(0)
    same_shape = GPT2LMHeadModel(loaded.config).eval()
    with pytest.raises(MismatchError, match=r"made by model 'wiki-lm': .* this model makes other keys"):
        knnstore.attach(same_shape, store)
    tuned = copy.deepcopy(loaded)
    tuned.transformer.h[3].mlp.c_fc.weight.data.mul_(-1)
    with pytest.raises(MismatchError, match="makes other keys"):
        knnstore.attach(tuned, store)
    narrow = GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=2, n_layer=1, vocab_size=8192)).eval()
    with pytest.raises(MismatchError, match="keys of 256 dimensions by model 'wiki-lm', but this model's keys have 32"):
        knnstore.attach(narrow, store)
    few = GPT2LMHeadModel(GPT2Config(n_embd=256, n_head=2, n_layer=1, vocab_size=60)).eval()
    with pytest.raises(MismatchError, match="this one has 60 tokens, and no token"):
        knnstore.attach(few, store)


def test_an_lm_in_training_is_refused(loaded, store):
    training = copy.deepcopy(loaded).train()
    with pytest.raises(ModelError, match=r"call model\.eval\(\)"):
        knnstore.attach(training, store)
    with pytest.raises(ModelError, match="isn't a causal or encoder-decoder language model"):
        knnstore.attach(torch.nn.Linear(2, 2).eval(), store)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"lambda_": 1.0}, "lambda_ is 1"),
        ({"k": 0}, "k is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"exact": True, "nprobe": 3}, "omit nprobe=3"),
        ({"nprobe": 0}, "nprobe is 0"),
    ],
    ids=str,
)
def test_a_setting_that_is_none_is_refused_and_leaves_no_hook(loaded, store, setting, told):
    before = traces(loaded)
    with pytest.raises(UsageError, match=told):
        knnstore.attach(loaded, store, **setting)
    assert traces(loaded) == before


def test_what_is_not_given_comes_from_the_data_and_says_so(loaded, store, ids):
    with knnstore.attach(loaded, store) as attached, torch.inference_mode():
        assert attached.setting.lambda_ == 0.25
        assert attached.setting.k == min(1024, len(store))
        assert 1 < attached.setting.temperature < 100
        assert "published" in attached.source
        assert torch.isfinite(loaded(ids).logits).all()
    with knnstore.attach(loaded, store, **SETTING) as attached:
        assert attached.source == "as given"


def test_a_model_loaded_by_its_name_is_joined_to_a_store_by_its_path(built, ids):
    model = AutoModelForCausalLM.from_pretrained(SHIPPED_MODELS / "wiki-lm")
    with knnstore.attach(model, str(built[0] / "books"), **SETTING), torch.inference_mode():
        assert model(ids).logits.shape == (*ids.shape, 8192)


def test_what_tune_stored_is_the_default(loaded, store, built, tmp_path):
    folder = tmp_path / "books.knnstore"
    shutil.copytree(built[0] / "books.knnstore", folder)
    manifest = store.datastore.manifest
    alone = Setting(32, 0.61, 7.5)
    record = TunedRecord(
        version=1,
        weights=manifest.model.weights,
        layer=manifest.key.layer,
        rows=len(store),
        search="",
        text="",
        tokens=10,
        documents=(),
        setting=replace(alone, cache=8, cache_weight=0.1, cache_temperature=1.0),
        alone=alone,
        spread=1.0,
        gate=None,
        measured=Measured(2.0, 1.0, None),
    )
    with editing(folder) as edit:
        save_tuned(edit, record)
    with knnstore.attach(loaded, folder) as attached:
        assert attached.setting == record.setting
        assert attached.source == "as knnstore.tune() stored it"
    with knnstore.attach(loaded, folder, lambda_=0.2) as attached:
        assert attached.setting == replace(alone, lambda_=0.2)
        assert attached.source.startswith("as knnstore.tune() stored it, without its gate and cache")
