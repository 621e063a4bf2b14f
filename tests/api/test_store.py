"""``knnstore.open``: a store in the hands of a program."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import knnstore
from knnstore.errors import MismatchError, StoreNotFoundError, UsageError
from knnstore.lm.spec import SHIPPED_MODELS


@pytest.fixture(scope="module")
def store(built):
    return knnstore.open(built[0] / "books")


@pytest.fixture(scope="module")
def stored(store):
    """Values and float32 keys of all rows."""
    (segment,) = store.datastore.segments
    return segment.values(0, len(store)), segment.codec.decode(segment.keys(0, len(store)))


def test_a_store_opens_by_name_by_path_and_as_the_only_one_here(built, monkeypatch):
    monkeypatch.chdir(built[0])
    stores = [knnstore.open(), knnstore.open("books"), knnstore.open(built[0] / "books.knnstore")]
    assert {(store.name, len(store), store.dimension) for store in stores} == {("books", len(stores[0]), 256)}
    with pytest.raises(StoreNotFoundError, match="no store at nonesuch"):
        knnstore.open("nonesuch")


def test_a_key_that_is_stored_finds_itself_first_with_its_token(store, stored):
    values, keys = stored
    rows = np.array([5, 17, len(store) - 1])
    for found in (store.search(keys[rows], 4), store.search(torch.from_numpy(keys[rows]).bfloat16().float(), 4)):
        assert found.rows[:, 0].tolist() == rows.tolist()
        assert found.values[:, 0].tolist() == values[rows].tolist()
    np.testing.assert_allclose(store.search(keys[rows], 4).distances[:, 0], 0, atol=1e-2)


def test_searching_more_lists_or_all_keys_finds_no_worse(store, stored):
    queries = stored[1][::300] + 1
    exact = store.search(queries, 8, exact=True)
    few, all_lists = (store.search(queries, 8, nprobe=nprobe) for nprobe in (1, 10**6))
    np.testing.assert_allclose(all_lists.distances, exact.distances, rtol=1e-3)
    assert (few.distances[:, 0] >= exact.distances[:, 0] * (1 - 1e-3)).all()


@pytest.mark.parametrize("keys", [np.zeros(256), np.zeros((1, 255)), np.zeros((2, 2, 256))])
def test_keys_of_another_shape_are_refused(store, keys):
    with pytest.raises(UsageError, match="256"):
        store.search(keys)


def test_the_neighbours_of_a_stored_passage_are_where_it_stands(store, built):
    text = (built[0] / "books" / "types.txt").read_text(encoding="utf-8")
    cut = text.index("\n\n", 600)
    nearest = store.neighbours(text[:cut], 3, after=6)
    assert [found.distance for found in nearest] == sorted(found.distance for found in nearest)
    first = nearest[0]
    assert first.document == "books/types.txt"
    assert text[:cut].endswith(first.context)
    assert text[cut:].startswith(first.token + first.passage.after)
    assert first.token == store.lm.loaded.decode([first.token_id])


def test_an_lm_in_memory_serves_as_well_as_its_name(store, built):
    path = SHIPPED_MODELS / "wiki-lm"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    one, other = store, knnstore.open(built[0] / "books", model, tokenizer)
    expected, found = (which.neighbours("The assignment", 4) for which in (one, other))
    assert [neighbour.passage for neighbour in found] == [neighbour.passage for neighbour in expected]
    with pytest.raises(UsageError, match="tokenizer is given without a model"):
        knnstore.open(built[0] / "books", tokenizer=tokenizer)


def test_text_for_another_lm_is_refused(built, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(SHIPPED_MODELS / "wiki-lm")
    model.transformer.ln_f.weight.data.mul_(2)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(SHIPPED_MODELS / "wiki-lm").save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="weights differ"):
        knnstore.open(built[0] / "books", tmp_path / "other").neighbours("text")


def test_the_package_offers_its_names_and_no_others():
    assert set(knnstore.__all__) <= set(dir(knnstore))
    assert all(getattr(knnstore, name) for name in knnstore.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'close'"):
        knnstore.close  # noqa: B018
    code = "import knnstore, sys; print('torch' in sys.modules); knnstore.open; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def at_once(calls):
    """What each call gives while all of them run in threads of their own."""
    start = threading.Barrier(len(calls))

    def run(call):
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [done.result() for done in [threads.submit(run, call) for call in calls]]


def test_every_method_may_be_called_by_several_threads_at_once(built, stored):
    texts = ["The assignment", "An object", "A class definition is", "The standard type hierarchy"]
    with knnstore.open(built[0] / "books", dtype="float32", device="cpu") as alone:
        expected = [
            (alone.neighbours(text, 4), alone.key(text), [t.token_id for t in alone.generate(text, 3)])
            for text in texts
        ]
        rows = alone.search(stored[1][:4], 4).rows
    store = knnstore.open(built[0] / "books", dtype="float32", device="cpu")  # nothing of it is open yet
    for _ in range(3):
        calls = [partial(store.neighbours, text, 4) for text in texts] + [partial(store.key, text) for text in texts]
        calls += [partial(lambda text: [t.token_id for t in store.generate(text, 3)], text) for text in texts]
        *results, found = at_once([*calls, partial(store.search, stored[1][:4], 4)])
        assert found.rows.tolist() == rows.tolist()
        for number, (neighbours, key, tokens) in enumerate(expected):
            assert [n.passage for n in results[number]] == [n.passage for n in neighbours]
            np.testing.assert_allclose(results[number + 4], key, atol=1e-4)
            assert results[number + 8] == tokens


def test_keys_of_a_store_and_passes_of_an_attached_lm_do_not_disturb_each_other(built):
    path = SHIPPED_MODELS / "wiki-lm"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    store = knnstore.open(built[0] / "books", model, tokenizer)
    ids = tokenizer("The assignment", return_tensors="pt").input_ids
    expected = store.key("The assignment")

    def logits():
        with torch.inference_mode():
            return model(ids).logits

    with knnstore.attach(model, store, k=8, lambda_=0.5, temperature=10.0):
        mixed = logits()
        results = at_once([partial(store.key, "The assignment"), logits] * 4)
        for key, said in zip(results[::2], results[1::2], strict=True):
            np.testing.assert_allclose(key, expected, atol=1e-4)
            torch.testing.assert_close(said, mixed, atol=1e-3, rtol=1e-3)


def test_closing_while_others_search_spoils_no_search_and_may_be_repeated(built, stored):
    store = knnstore.open(built[0] / "books")
    expected = store.search(stored[1][:64], 4).rows.tolist()
    results = at_once([partial(store.search, stored[1][:64], 4), store.close, store.close] * 3)
    assert [found.rows.tolist() for found in results[::3]] == [expected] * 3
