"""A stored mixture with gate, cache and exact matches, wherever it is used: one text, one perplexity."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import DynamicCache, StaticCache

import knnstore
from knnstore.cli import main
from knnstore.datastore.edits import editing
from knnstore.datastore.store import Datastore
from knnstore.errors import ModelError
from knnstore.mixing.features import FEATURES_WITH_MATCHES
from knnstore.mixing.gate import MATCH_SOURCES, Gate, MemorySource
from knnstore.mixing.setting import Setting
from knnstore.scheduling import Job
from knnstore.scoring.tuned_record import Measured, TunedRecord, save_tuned
from knnstore.suffix_array.build import build_suffixes

CACHE = 64
PROMPTS = ["An assignment statement", "The", "Objects are Python's abstraction for data . All data"]


def made_up_gate():
    """A gate that weighs every source, and differently at each token."""
    rng = np.random.default_rng(0)
    sources = (MemorySource("store", 16, 5.0), MemorySource("store", 16, 20.0), MemorySource("cache", 0, 8.0))
    sources, count = (*sources, *MATCH_SOURCES), len(FEATURES_WITH_MATCHES)
    hidden, output = rng.normal(0, 0.2, (count, 4)), rng.normal(0, 1, (4, len(sources) + 1))
    # after BOS a key is the stored ones of all documents: the logarithm of that distance is rounding alone
    hidden[FEATURES_WITH_MATCHES.index("log_first_distance")] = 0
    rows = [tuple(map(tuple, table.tolist())) for table in (hidden, output)]
    return Gate(
        FEATURES_WITH_MATCHES, sources, (0.0,) * count, (1.0,) * count, rows[0], (0.0,) * 4, rows[1], (0.0,) * 6
    )


@pytest.fixture(scope="module")
def folder(built, tmp_path_factory):
    """A folder with a store that a mixture with everything is stored with, and ``text.txt``, shorter than a window."""
    folder = tmp_path_factory.mktemp("stored")
    shutil.copytree(built[0] / "books.knnstore", folder / "books.knnstore")
    store = Datastore(folder / "books.knnstore")
    build_suffixes(store, Job(memory=4 * 10**9))
    manifest, alone = store.manifest, Setting(16, 0.3, 10.0)
    record = TunedRecord(
        version=1,
        weights=manifest.model.weights,
        layer=manifest.key.layer,
        rows=store.rows,
        search="",
        text="",
        tokens=10,
        documents=(),
        setting=Setting(16, 0.3, 10.0, CACHE, 0.2, 8.0),
        alone=alone,
        spread=20.0,
        gate=made_up_gate(),
        measured=Measured(3.0, 2.0, 1.0),
    )
    with editing(store.root) as edit:
        save_tuned(edit, record)
    words = sorted((built[0] / "books").iterdir())[0].read_text(encoding="utf-8").split()
    # half of it stands in the store, and it repeats itself
    (folder / "text.txt").write_text(" ".join([*words[20:40][::-1], *words[:40], *words[:20]]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def store(folder):
    return knnstore.open(folder / "books.knnstore", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def ids(folder, tokenizer):
    text = (folder / "text.txt").read_text(encoding="utf-8")
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
    assert CACHE < ids.shape[1] < 256
    return ids


@pytest.fixture(scope="module")
def scored(folder):
    command = ["score", "--store", folder / "books.knnstore", "--text", folder / "text.txt", "--exact", "--json"]
    done = CliRunner().invoke(main, [*map(str, command), "--quiet", "--dtype", "float32", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)["knn"]
    assert (result["adaptive"], result["cache"]) == (True, CACHE)
    return result["perplexity"]


def log_p(logits, ids):
    """ln p of every token but the first, float64."""
    return logits[:, : ids.shape[1] - 1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].double()


def test_an_attached_lms_logits_have_the_perplexity_of_score(loaded, store, ids, scored):
    with knnstore.attach(loaded, store, exact=True) as attached, torch.inference_mode():
        assert attached.gated
        assert "cache=64, gated" in repr(attached)
        logits = loaded(ids).logits
        plain = loaded(ids[:, :40]).logits  # what comes later changes nothing
    assert float((-log_p(logits, ids)).mean().exp()) == pytest.approx(scored, rel=1e-5)
    torch.testing.assert_close(plain, logits[:, :40], atol=1e-3, rtol=1e-4)
    with torch.inference_mode():
        assert float((-log_p(loaded(ids).logits, ids)).mean().exp()) > 1.05 * scored


def test_the_page_shows_the_perplexity_of_score(folder, store, scored):
    pytest.importorskip("gradio", reason="needs the extra [explore]: pip install 'knnstore[explore]'")
    from knnstore.explore.explorer import Explorer

    explorer = Explorer(store, exact=True)
    analysis = explorer.analysed((folder / "text.txt").read_text(encoding="utf-8"))
    assert analysis.scored(explorer.start.mixture).perplexity == pytest.approx(scored, rel=1e-5)
    choices = analysis.choices(100, explorer.start.mixture, 8)
    (own,) = [choice for choice in choices if choice.token == int(analysis.ids[100])]
    assert own.mixture == pytest.approx(np.exp(analysis.scored(explorer.start.mixture).log_p[100]), rel=1e-4)


def test_the_harness_finds_the_perplexity_of_score(folder, loaded, tokenizer, ids, scored):
    pytest.importorskip("lm_eval", reason="the harness isn't installed: pip install 'knnstore[eval]'")
    pytest.importorskip("accelerate", reason="the harness's model hf needs it: pip install 'knnstore[eval]'")
    from lm_eval.api.instance import Instance

    from knnstore.evaluation import KnnstoreLM

    text = (folder / "text.txt").read_text(encoding="utf-8")
    lm = KnnstoreLM(loaded, str(folder / "books.knnstore"), exact=True, tokenizer=tokenizer, device="cpu", batch_size=2)
    try:
        nats = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    finally:
        lm.attachment.detach()
    assert np.exp(-nats[0] / (ids.shape[1] - 1)) == pytest.approx(scored, rel=1e-5)


def test_shares_of_all_sources_add_up_to_the_text(folder, store, scored):
    result = store.attribute((folder / "text.txt").read_text(encoding="utf-8"), joined=store.joined(exact=True))
    assert min(result.store, result.cache, result.matches, result.lm) > 0.01
    assert sum(document.share for document in result.documents) == pytest.approx(result.store)


# Sequences


def generate(model, tokenizer, prompts, **options):
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    given = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None, "do_sample": False} | options
    return model.generate(**batch, **given)[:, batch.input_ids.shape[1] :].tolist()


def test_token_by_token_with_a_cache_a_text_has_the_logits_of_one_pass(loaded, store, ids):
    with knnstore.attach(loaded, store, exact=True), torch.inference_mode():
        whole, past, logits = loaded(ids).logits, None, []
        for part in (ids[:, :90], *ids[:, 90:100].split(1, dim=1), ids[:, 100:]):
            output = loaded(part, past_key_values=past, use_cache=True)
            past = output.past_key_values
            logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=2e-3, rtol=1e-4)


def test_generate_of_the_store_writes_what_an_attached_lm_writes(loaded, tokenizer, store):
    generation = store.generate(PROMPTS[2], 8, joined=store.joined(exact=True))
    tokens = list(generation)
    prompt = torch.tensor([[tokenizer.bos_token_id, *tokenizer(PROMPTS[2], add_special_tokens=False).input_ids]])
    with knnstore.attach(loaded, store, exact=True):
        written = loaded.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert [token.token_id for token in tokens] == written[0, prompt.shape[1] :].tolist()
    assert generation.gated


def test_a_padded_batch_and_beams_with_and_without_a_cache_write_the_same(loaded, tokenizer, store):
    with knnstore.attach(loaded, store, exact=True):
        together = generate(loaded, tokenizer, PROMPTS)
        assert together == [generate(loaded, tokenizer, [prompt])[0] for prompt in PROMPTS]
        assert together == generate(loaded, tokenizer, PROMPTS, use_cache=False)
        beams = generate(loaded, tokenizer, PROMPTS, num_beams=3)
        assert beams == generate(loaded, tokenizer, PROMPTS, num_beams=3, use_cache=False)
    assert beams != together


def test_packed_texts_look_back_each_at_its_own(loaded, store, ids):
    one, other = ids[:, :60], ids[:, 60:100]
    places = torch.cat([torch.arange(60), torch.arange(40)])[None]
    with knnstore.attach(loaded, store, exact=True), torch.inference_mode():
        together = loaded(torch.cat([one, other], dim=1), position_ids=places, use_cache=False).logits
        torch.testing.assert_close(together[:, :60], loaded(one).logits, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(together[:, 60:], loaded(other).logits, atol=1e-3, rtol=1e-4)


def test_two_attached_stores_and_threads_look_back_each_at_their_own(loaded, tokenizer, store):
    written = {}

    def work(prompt):
        written[prompt] = generate(loaded, tokenizer, [prompt])[0]

    with knnstore.attach(loaded, store, exact=True), knnstore.attach(loaded, store, exact=True):
        expected = {prompt: generate(loaded, tokenizer, [prompt])[0] for prompt in PROMPTS}
        threads = [threading.Thread(target=work, args=(prompt,)) for prompt in PROMPTS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert written == expected


def test_what_cannot_be_followed_is_refused_by_name(loaded, store, ids):
    with torch.inference_mode():
        begun = loaded(ids[:, :4], use_cache=True).past_key_values
        with knnstore.attach(loaded, store, exact=True):
            with pytest.raises(ModelError, match="isn't possible with inputs_embeds: give input_ids, or give k"):
                loaded(inputs_embeds=loaded.transformer.wte(ids))
            with pytest.raises(ModelError, match="isn't possible with a StaticCache: pass a DynamicCache"):
                loaded(ids, past_key_values=StaticCache(loaded.config, max_cache_len=200), use_cache=True)
            with pytest.raises(ModelError, match="a cache that was started before the store was attached"):
                loaded(ids[:, 4:5], past_key_values=begun, use_cache=True)
            loaded(ids, past_key_values=DynamicCache(), use_cache=True)
        with knnstore.attach(loaded, store, exact=True, k=8, lambda_=0.2, temperature=9.0):
            loaded(inputs_embeds=loaded.transformer.wte(ids))
