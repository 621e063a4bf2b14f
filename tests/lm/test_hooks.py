"""Hooks that mix, on a tiny LM of every family: what is asked of the store, and what becomes of the LM's own."""

import copy
import pickle

import numpy as np
import pytest
import torch
from families import FAMILIES, module_at, tiny_model

from knnstore.attachment.mixer import Mixer
from knnstore.errors import CorruptStoreError, ModelError, NumericsError
from knnstore.lm.hooks import MixtureHooks
from knnstore.lm.keylayer import KeyPoint, find_key_point
from knnstore.mixing.evidence import Evidence
from knnstore.mixing.mixture import Mixture
from knnstore.mixing.setting import Setting
from knnstore.neighbours import Neighbours

VOCABULARY = 64
IDS = torch.from_numpy(np.random.default_rng(0).integers(1, VOCABULARY, (2, 11)))
WEIGHT, TEMPERATURE = 0.3, 2.0
MIXTURE = Mixture(Setting(5, 0.5, 1.0))


class Recorder:
    """A store of which every query finds neighbours that depend on it; keeps what was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, queries):
        self.asked.append(torch.from_numpy(queries))
        values = (np.abs(queries[:, :5]) * 50).astype(np.int64) % VOCABULARY
        return Neighbours(np.sort(np.abs(queries[:, 5:10]), axis=1), values)


def distribution(neighbours):
    """p_kNN by the formula, float64 (n, vocabulary)."""
    weights = np.exp(-neighbours.distances.astype(np.float64) / TEMPERATURE)
    weights /= weights.sum(axis=1, keepdims=True)
    p = np.zeros((len(weights), VOCABULARY))
    for line, (values, shares) in enumerate(zip(neighbours.values, weights, strict=True)):
        np.add.at(p[line], values, shares)
    return torch.from_numpy(p)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    try:
        return tiny_model(request.param), FAMILIES[request.param][1]
    except ValueError as error:
        pytest.skip(f"this transformers has no {request.param}: {error}")


def mixed(model, search, weight=WEIGHT, layer="ffn-input"):
    mixture = Mixture(Setting(5, weight, TEMPERATURE))
    return MixtureHooks(model, find_key_point(model, layer), Mixer(lambda queries, _: search(queries), mixture))


def by_hand(model, path, ids):
    """Keys of all positions by a hook written out, and the LM's own logits."""
    seen = []
    if path is None:
        handle = model.base_model.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    else:

        def keep(_, args, kwargs):
            seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

        handle = module_at(model, path).register_forward_pre_hook(keep, with_kwargs=True)
    with torch.inference_mode():
        logits = model(ids).logits
    handle.remove()
    return seen[0].reshape(*ids.shape, -1), logits


def test_the_store_is_asked_for_the_keys_and_the_lms_part_is_its_own(family):
    model, path = family
    keys, logits = by_hand(model, path, IDS)
    search = Recorder()
    hooks = mixed(model, search)
    with torch.inference_mode():
        mixed_logits = model(IDS).logits
        last = model(IDS, logits_to_keep=1).logits
    hooks.detach()
    assert torch.equal(search.asked[0], keys.flatten(0, 1))
    torch.testing.assert_close(search.asked[1], keys[:, -1])
    p_knn = distribution(search(search.asked[0].numpy())).reshape(logits.shape)
    log_p = (WEIGHT * p_knn + (1 - WEIGHT) * logits.double().softmax(-1)).log()
    # the offset of the LM's own logits is kept
    expected = log_p + logits.double().logsumexp(-1, keepdim=True)
    torch.testing.assert_close(mixed_logits.double(), expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(last, mixed_logits[:, -1:], atol=1e-4, rtol=1e-4)
    assert torch.equal(by_hand(model, path, IDS)[1], logits)


def test_generating_with_a_cache_asks_for_the_keys_of_whole_passes(family):
    model, path = family
    search = Recorder()
    hooks = mixed(model, search)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = torch.cat([model.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), **options)])
    hooks.detach()
    keys, _ = by_hand(model, path, ids)
    assert [len(asked) for asked in search.asked] == [1] * 5
    torch.testing.assert_close(torch.cat(search.asked), keys[0, 10:15], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_prediction_of_the_text(family, side):
    model, path = family
    if path is None:
        pytest.skip("state-space models read padding unless their fast kernels mask it")
    if side == "left" and type(model).__name__.startswith(("GPT2", "GPTNeoFor", "GPTBigCode", "XGLM")):
        pytest.skip("absolute positions count the padding: transformers' generate passes position_ids for them")
    short = IDS[1:, :7]
    padding = torch.zeros((1, 4), dtype=torch.long)
    line = torch.cat([padding, short] if side == "left" else [short, padding], dim=1)
    mask = torch.cat([torch.ones_like(IDS[:1]), (line != 0).long()])
    search = Recorder()
    hooks = mixed(model, search)
    with torch.inference_mode():
        together = model(torch.cat([IDS[:1], line]), attention_mask=mask).logits
        alone = model(short).logits
    hooks.detach()
    assert len(search.asked[0]) == 11 + 7
    text = together[1:, 4:] if side == "left" else together[1:, :7]
    torch.testing.assert_close(text, alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_of_0_keeps_the_lms_logits_bit_for_bit(family, dtype):
    model, _ = family
    changed = model.to(dtype)
    try:
        with torch.inference_mode():
            expected = changed(IDS).logits.float()
            hooks = mixed(changed, Recorder(), weight=0.0)
            logits = changed(IDS).logits
            hooks.detach()
    finally:
        model.float()
    assert torch.equal(logits, expected)


# Beyond the families


@pytest.fixture
def gpt2():
    return tiny_model("gpt2")


def test_the_hidden_state_may_be_the_key_of_any_lm(gpt2):
    search = Recorder()
    hooks = mixed(gpt2, search, layer="hidden")
    with torch.inference_mode():
        gpt2(IDS)
        expected = gpt2.transformer(IDS).last_hidden_state
    hooks.detach()
    assert torch.equal(search.asked[0], expected.flatten(0, 1))


def test_who_finds_nothing_is_left_to_the_lm(gpt2):
    def nothing(queries):
        absent = np.full((len(queries), 3), -1)
        absent[::2, 0] = 7  # every other query finds one neighbour
        return Neighbours(np.where(absent < 0, np.inf, 1).astype(np.float32), absent)

    with torch.inference_mode():
        alone = gpt2(IDS).logits.flatten(0, 1)
        hooks = mixed(gpt2, nothing)
        logits = gpt2(IDS).logits.flatten(0, 1)
        hooks.detach()
    assert torch.equal(logits[1::2], alone[1::2])
    certain = alone[::2].softmax(-1) * (1 - WEIGHT)
    certain[:, 7] += WEIGHT
    torch.testing.assert_close(logits[::2].softmax(-1), certain)


def test_a_loss_keeps_what_is_not_the_cross_entropy():
    model = tiny_model("mixtral")
    options = {"labels": IDS, "output_router_logits": True}
    with torch.inference_mode():
        plain = model(IDS, **options)
        aside = plain.loss - torch.nn.functional.cross_entropy(plain.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        hooks = mixed(model, Recorder())
        output = model(IDS, **options)
        hooks.detach()
    assert float(aside.abs()) > 1e-4
    ours = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(output.loss, ours + aside)


def test_a_layer_that_runs_twice_in_a_pass_is_no_key(gpt2):
    act = gpt2.transformer.drop
    gpt2.transformer.h[1].attn.resid_dropout = act  # the same module in two places
    hooks = MixtureHooks(
        gpt2, KeyPoint("ffn-input", "drop", act), Mixer(lambda queries, _: Recorder()(queries), MIXTURE)
    )
    with pytest.raises(ModelError, match="drop ran 2 times in one pass of GPT2LMHeadModel"):
        gpt2(IDS)
    hooks.detach()


def test_an_overflow_and_a_token_that_the_lm_does_not_have_are_errors(gpt2):
    hooks = mixed(gpt2, Recorder())
    gpt2.transformer.h[1].ln_2.weight.data.fill_(float("inf"))
    with pytest.raises(NumericsError, match="a key isn't finite"):
        gpt2(IDS)
    hooks.detach()
    foreign = Neighbours(np.ones((1, 2), np.float32), np.array([[3, VOCABULARY]]))
    with pytest.raises(CorruptStoreError, match="holds token 64, the LM has 64"):
        MIXTURE.distribution(Evidence(foreign), torch.zeros(1, VOCABULARY))


def test_a_compiled_lm_is_mixed_as_well(gpt2):
    search = Recorder()
    with torch.inference_mode():
        hooks = mixed(gpt2, search)
        expected = gpt2(IDS).logits
        compiled = torch.compile(gpt2, backend="eager")
        torch.testing.assert_close(compiled(IDS).logits, expected)
        hooks.detach()
    torch._dynamo.reset()


def test_an_lm_that_was_compiled_and_run_before_is_mixed_as_well(gpt2):
    with torch.inference_mode():
        compiled = torch.compile(gpt2, backend="eager")
        alone = compiled(IDS).logits
        hooks = mixed(gpt2, Recorder())
        expected = gpt2(IDS).logits
        torch.testing.assert_close(compiled(IDS).logits, expected)
        hooks.detach()
        torch.testing.assert_close(compiled(IDS).logits, alone)
    assert not torch.equal(alone, expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_copy_of_a_mixed_lm_is_refused_and_a_detached_one_copies(gpt2, copied):
    hooks = mixed(gpt2, Recorder())
    with pytest.raises(ModelError, match="can't be copied or pickled while a store is attached to it"):
        copied(gpt2)
    hooks.detach()
    copied(gpt2)


def test_a_mixed_lm_cannot_be_traced(gpt2):
    hooks = mixed(gpt2, Recorder())
    with pytest.raises(ModelError, match="GPT2LMHeadModel can't be traced while a store is attached"):
        torch.jit.trace(gpt2, IDS, strict=False)
    hooks.detach()


def test_hooks_that_were_copied_elsewhere_do_nothing_once_detached(gpt2):
    with torch.inference_mode():
        alone = gpt2(IDS).logits
        hooks = mixed(gpt2, Recorder())
        kept = copy.copy(gpt2._forward_hooks)
        hooks.detach()
        gpt2._forward_hooks.update(kept)
        assert torch.equal(gpt2(IDS).logits, alone)


def test_a_thread_that_detaches_during_anothers_pass_leaves_it_to_the_lm(gpt2):
    with torch.inference_mode():
        alone = gpt2(IDS).logits
    hooks = mixed(gpt2, Recorder())
    gpt2.transformer.ln_f.register_forward_hook(lambda *_: hooks.detach())  # as another thread might, at that moment
    with torch.inference_mode():
        assert torch.equal(gpt2(IDS).logits, alone)
