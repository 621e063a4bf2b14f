"""A store of pairs, from the command line to beams: a translation model says what its store says."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from translation import RADIO, invoke, numbers, tiny_model

import knnstore
from knnstore.datastore.store import Datastore
from knnstore.errors import MismatchError, UsageError

SETTING = {"k": 64, "lambda_": 0.9, "temperature": 10.0}
GIVEN = ("--k", 64, "--lambda", 0.9, "--temperature", 10)


@pytest.fixture(scope="module")
def model(radio):
    return AutoModelForSeq2SeqLM.from_pretrained(radio / "model").eval()


@pytest.fixture(scope="module")
def tokenizer(radio):
    return AutoTokenizer.from_pretrained(radio / "model")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A store of a causal LM."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "text.txt").write_text("one two three " * 40, encoding="utf-8")
    done = invoke("ingest", "--corpus", folder / "text.txt", "--store", folder / "plain", "--workers", 0, "--quiet")
    assert done.exit_code == 0, done.output
    return folder / "plain"


@pytest.fixture(scope="module")
def store(radio):
    return knnstore.open(radio / "radio", radio / "model")


def translate(model, tokenizer, sources, **options):
    batch = tokenizer(sources, return_tensors="pt", padding=True)
    written = model.generate(**batch, max_new_tokens=12, do_sample=False, **options)
    return tokenizer.batch_decode(written, skip_special_tokens=True)


def exact(translations, targets):
    return np.mean([ours == theirs for ours, theirs in zip(translations, targets, strict=True)])


# Scoring


def by_hand(model, **inputs):
    """Of one pair, the keys (n, d) and p_LM (n, vocabulary)."""
    seen = []
    handle = model.model.decoder.layers[-1].fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
    handle.remove()
    return seen[0], logits.double().softmax(-1)


def scored(radio, *arguments):
    done = invoke("score", "--store", radio / "radio", "--model", radio / "model", "--json", "--quiet", *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_perplexity_is_that_of_a_mixture_written_out_by_hand(radio, store, model, tokenizer):
    files = ("--source", radio / "test.digits", "--target", radio / "test.words")
    result = scored(radio, *files, *GIVEN, "--exact", "--dtype", "float32")
    log_lm, log_p = [], []
    for source, target in numbers(40, RADIO, 2):
        labels = tokenizer(target, return_tensors="pt").input_ids
        keys, p_lm = by_hand(model, **tokenizer(source, return_tensors="pt"), labels=labels)
        found = store.search(keys, 64, exact=True)
        weights = torch.from_numpy(-found.distances / 10.0).double().softmax(-1)
        p_store = torch.zeros_like(p_lm).scatter_add_(1, torch.from_numpy(found.values), weights)
        targets = labels[0][:, None]
        log_lm += p_lm.gather(1, targets).log()[:, 0].tolist()
        log_p += (0.9 * p_store + 0.1 * p_lm).gather(1, targets).log()[:, 0].tolist()
    assert result["tokens"] == len(log_p)
    assert result["base"]["perplexity"] == pytest.approx(np.exp(-np.mean(log_lm)), rel=1e-4)
    assert result["knn"]["perplexity"] == pytest.approx(np.exp(-np.mean(log_p)), rel=1e-4)


def test_what_is_held_out_is_tuned_on_and_the_store_makes_it_much_better(radio):
    result = scored(radio)
    assert (result["text"], result["documents"] >= 5) == ("held-out documents", True)
    assert result["knn"]["perplexity"] < 0.1 * result["base"]["perplexity"]
    assert result["knn"]["perplexity"] < 2


def test_pairs_too_long_for_the_model_are_left_out_and_told(radio, tmp_path):
    (tmp_path / "pairs.tsv").write_text("1 2\tone two\n" + "3 " * 40 + "\t" + "tree " * 40 + "\n4\tfower\n", "utf-8")
    result = scored(radio, "--text", tmp_path / "pairs.tsv", *GIVEN)
    assert result["text"].endswith("pairs.tsv (1 pairs longer than 32 tokens left out)")
    assert (result["documents"], result["tokens"]) == (2, 5)


# Generating


def test_beams_through_the_store_translate_as_its_pairs_do(model, tokenizer, radio):
    sources, targets = zip(*numbers(40, RADIO, 2), strict=True)
    alone = exact(translate(model, tokenizer, list(sources), num_beams=4), targets)
    with knnstore.attach(model, radio / "radio", **SETTING):
        together = translate(model, tokenizer, list(sources), num_beams=4)
        uncached = translate(model, tokenizer, list(sources)[:4], num_beams=4, use_cache=False)
        one_by_one = [translate(model, tokenizer, [source], num_beams=4)[0] for source in sources[:4]]
    assert alone < 0.2
    assert exact(together, targets) > 0.9
    assert uncached == one_by_one == together[:4]
    assert exact(translate(model, tokenizer, list(sources), num_beams=4), targets) == alone  # nothing is left behind


def test_a_written_translation_streams_and_cites_the_pairs_that_taught_it(store):
    generation = store.generate("3 4 5 9 1", 12, joined=store.joined(**SETTING))
    written = list(generation)
    assert generation.text.split() == ["tree", "fower", "fife", "niner", "one"]
    assert [token.text.strip() for token in written] == generation.text.split()
    assert written[0].store_share > 0.99
    assert "train.words#" in str(generation.cited(written[0]).document)
    with pytest.raises(UsageError, match="the source has 41 tokens, but the LM reads at most 32: split it"):
        list(store.generate("1 " * 40, joined=store.joined(**SETTING)))


def test_neighbours_are_asked_with_a_source_and_what_is_written_of_its_target(store):
    found = store.neighbours("tree fower", 8, source="3 4 5", exact=True)
    assert [neighbour.token.strip() for neighbour in found] == ["fife"] * 8
    first = store.neighbours("", 8, source="9 4 5", exact=True)
    assert {neighbour.token.strip() for neighbour in first} == {"niner"}
    with pytest.raises(UsageError, match="give the source of the text"):
        store.neighbours("tree fower")


def test_the_shares_of_a_translation_add_up(store):
    result = store.attribute("tree fower", source="3 4", joined=store.joined(**SETTING))
    assert result.tokens == 3  # EOS is predicted as well
    assert result.lm + sum(share.share for share in result.documents) == pytest.approx(1)
    with pytest.raises(UsageError, match="give the source of the text"):
        store.attribute("tree fower")


def test_the_command_writes_the_translation_alone(radio):
    options = ("--store", radio / "radio", "--model", radio / "model", "--lambda", 0.9, "--quiet")
    done = invoke("generate", "--prompt", "9 9 5", *options)
    assert (done.exit_code, done.stdout) == (0, "niner niner fife\n")
    done = invoke("neighbours", "niner", "--source", "9 3", "--k", 3, *options[:4], "--json")
    assert {found["token"].strip() for found in json.loads(done.stdout)["neighbours"]} == {"tree"}


# What belongs together


def test_a_store_of_pairs_refuses_a_causal_lm_and_the_other_way_round(radio, plain, model):
    done = invoke("score", "--store", radio / "radio", "--model", "wiki-lm")
    assert done.exit_code == 1
    assert "was made by an encoder-decoder model, 'model', and 'wiki-lm' is a causal LM" in done.stderr
    done = invoke("score", "--store", plain, "--model", radio / "model")
    assert done.exit_code == 1
    assert "was made by a causal LM, 'wiki-lm', and" in done.stderr
    assert "ingest --task seq2seq --source FILE --target FILE --model" in done.stderr
    with pytest.raises(MismatchError, match="was made by a causal LM, 'wiki-lm'"):
        knnstore.attach(model, plain)
    with pytest.raises(MismatchError, match="this model makes other keys"):
        knnstore.attach(tiny_model("marian", encoder_layers=1, decoder_layers=1), radio / "radio")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--corpus", "plain.txt"), "is an encoder-decoder model, not a causal LM: give --task seq2seq"),
        (("--source", "train.digits", "--target", "train.words"), "add --task seq2seq"),
        (("--task", "seq2seq"), "no corpus: give --source FILE --target FILE"),
        (("--task", "seq2seq", "--source", "train.digits"), "1 --source and 0 --target files"),
        (
            ("--task", "seq2seq", "--source", "train.digits", "--target", "test.words"),
            "'test.words' ends after 40 lines",
        ),
        (("--task", "seq2seq", "--source", "nothing", "--target", "test.words"), "no such file: 'nothing'"),
        (("--task", "seq2seq", "--corpus", "train.words"), "isn't a readable text file: give .tsv"),
        (("--task", "seq2seq", "--corpus", "a.tsv", "--stride", "4"), "a pair of texts is one window"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_to_do(radio, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    for name in ("train.digits", "train.words", "test.words"):
        shutil.copyfile(radio / name, name)
    shutil.copyfile(radio / "train.words", "plain.txt")
    done = invoke("ingest", *arguments, "--model", radio / "model", "--store", "new", "--workers", 0)
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_causal_lm_with_pairs_says_what_it_is(radio, tmp_path):
    files = ("--source", radio / "train.digits", "--target", radio / "train.words")
    done = invoke("ingest", "--task", "seq2seq", *files, "--store", tmp_path / "new", "--workers", 0)
    assert done.exit_code == 2
    assert "model wiki-lm is a causal LM, not an encoder-decoder model: omit --task seq2seq" in done.stderr


# Other files, and the same store


def ingest(radio, store, *arguments):
    where = ("--model", radio / "model", "--store", store, "--workers", 0, "--quiet", "--json", "--holdout", 0.05)
    done = invoke("ingest", "--task", "seq2seq", *arguments, *where)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def contents(store):
    """Pairs of token ids with their keys, held-out ones apart."""
    found = Datastore(store)
    stored, heldout = [], []
    for segment in found.segments:
        table = segment.documents
        for document in range(len(table)):
            first, count = int(table.first_row[document]), int(table.tokens[document])
            pair = (segment.source(document).tolist(), segment.values(first, first + count).tolist())
            stored.append((*pair, segment.codec.decode(segment.keys(first, first + count)).round(2).tolist()))
            heldout.append((pair[0], segment.heldout(document).tolist()))
    found.close()
    return [pair for pair in stored if pair[1]], [pair for pair in heldout if pair[1]]


def test_tsv_jsonl_and_parquet_hold_the_same_pairs(radio, tmp_path):
    pairs = numbers(300, RADIO, 1)
    objects = [{"id": f"n{i}", "translation": {"digits": a, "words": b}} for i, (a, b) in enumerate(pairs)]
    (tmp_path / "pairs.tsv").write_text("".join(f"{i}\t{b}\t{a}\n" for i, (a, b) in enumerate(pairs)), "utf-8")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in objects), "utf-8")
    pq.write_table(pa.Table.from_pylist(objects), tmp_path / "pairs.parquet")
    expected = contents(radio / "radio.knnstore")
    assert len(expected[0]) + len(expected[1]) == len(set(pairs))  # a pair that is there twice is stored once
    fields = {"tsv": ("3", "2")}
    for kind in ("tsv", "jsonl", "parquet"):
        source, target = fields.get(kind, ("translation.digits", "translation.words"))
        named = ("--source-field", source, "--target-field", target)
        report = ingest(radio, tmp_path / kind, "--corpus", tmp_path / f"pairs.{kind}", *named)
        assert (report["documents"], report["copies"]) == (len(set(pairs)), 300 - len(set(pairs)))
        assert contents(tmp_path / f"{kind}.knnstore") == expected
    assert str(Datastore(tmp_path / "jsonl.knnstore").segments[0].documents[7]).endswith("pairs.jsonl#n7")


def test_bad_pairs_are_told_by_their_line_or_left_out(radio, tmp_path):
    lines = ["1\tone", "2", "3\ttree", "\tnothing", "4 " * 40 + "\tfower", "5\tfife", "6\tsix"]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines), "utf-8")
    arguments = ("--corpus", tmp_path / "pairs.tsv", "--model", radio / "model", "--store", tmp_path / "new")
    done = invoke("ingest", "--task", "seq2seq", *arguments, "--workers", 0)
    assert (done.exit_code, "pairs.tsv', line 2: 1 columns, but column 2 is needed" in done.stderr) == (2, True)
    done = invoke("ingest", "--task", "seq2seq", *arguments, "--workers", 0, "--errors", "skip", "--overwrite")
    assert done.exit_code == 0, done.output
    assert (
        "left out: 1 document empty, 1 document skipped as unreadable, 1 pair longer than the LM takes" in done.stderr
    )


def test_pairs_are_added_replaced_and_compacted_with_their_sources(radio, tmp_path):
    pairs = numbers(300, RADIO, 1)
    new = ("9 9 9", pairs[5][1])  # the same target of another source is another pair
    changed = [("0 0", "oh oh"), *pairs[1:], *numbers(20, RADIO, 9), new, new, pairs[5]]
    sides = [tmp_path / name for name in ("some.digits", "some.words")]
    for side, path in enumerate(sides):
        path.write_text("".join(f"{pair[side]}\n" for pair in pairs), "utf-8")
    ingest(radio, tmp_path / "grown", "--source", sides[0], "--target", sides[1])
    for side, path in enumerate(sides):
        path.write_text("".join(f"{pair[side]}\n" for pair in changed), "utf-8")
    report = ingest(radio, tmp_path / "grown", "--source", sides[0], "--target", sides[1])
    assert [report[name] for name in ("added", "changed", "unchanged", "copies")] == [21, 1, 300, 1]
    done = invoke("compact", "--store", tmp_path / "grown", "--quiet")
    assert done.exit_code == 0, done.output
    done = invoke("subset", tmp_path / "grown", "--into", tmp_path / "part", "--documents", "*#3", "--quiet")
    assert done.exit_code == 0, done.output
    tokenizer = AutoTokenizer.from_pretrained(radio / "model")
    every = [pair[:2] for part in contents(tmp_path / "grown.knnstore") for pair in part]
    assert sorted(every) == sorted((tokenizer(a).input_ids, tokenizer(b).input_ids) for a, b in set(changed))
    (three,) = [pair[:2] for part in contents(tmp_path / "part.knnstore") for pair in part]
    assert three == tuple(tokenizer(side).input_ids for side in pairs[3])
    assert invoke("verify", "--store", tmp_path / "grown").exit_code == 0
