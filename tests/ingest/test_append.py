"""Adding to a store: only what is new goes through the LM, what changed is replaced, what is gone can be pruned."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from knnstore.cli.report.ingest import ingest_text
from knnstore.datastore.history import changes
from knnstore.datastore.store import Datastore
from knnstore.errors import MismatchError
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.remove import remove
from knnstore.scheduling import Job

NAMES = [f"{letter}.txt" for letter in "abcdefgh"]


@pytest.fixture(scope="module")
def texts(tiny_corpus):
    return {name: path.read_text()[:700] for name, path in zip(NAMES, sorted(tiny_corpus.iterdir()), strict=True)}


@pytest.fixture
def books(texts, tmp_path, monkeypatch):
    """``books/`` with the first five documents, in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "books"
    folder.mkdir()
    for name in NAMES[:5]:
        (folder / name).write_text(texts[name])
    return folder


@pytest.fixture
def run(counting_runner):
    """Ingest ``books/``; the report, and how many tasks of each kind ran."""

    def ingested(most=None, **options):
        runner = counting_runner(most)
        settings = {"corpus": ("books",), "store": "s", "chunk_rows": 128, "context": 64} | options
        return ingest(IngestOptions(**settings), Job(runner)), runner.ran

    return ingested


def counts(report):
    return {name: getattr(report, name) for name in ("added", "changed", "unchanged", "withheld", "gone", "pruned")}


NOTHING = {"added": 0, "changed": 0, "unchanged": 0, "withheld": 0, "gone": 0, "pruned": 0}


def live_texts(store):
    """The tokens of every document that isn't removed, stored or held out, by path and record."""
    found = {}
    for segment in store.segments:
        removed = set(store.removed.get(segment.root.name, np.empty(0)).tolist())
        for number, document in enumerate(segment.documents.origins()):
            if number not in removed:
                first = int(segment.documents.first_row[number])
                stored = segment.values(first, first + int(segment.documents.tokens[number]))
                found[str(document)] = np.concatenate([stored, segment.heldout(number)]).tolist()
    return found


def test_new_documents_alone_go_through_the_lm(run, books, texts, tmp_path, bytes_of):
    first, _ = run()
    before = bytes_of(tmp_path / "s.knnstore" / "segments" / "0000")
    for name in NAMES[5:7]:
        (books / name).write_text(texts[name])
    report, ran = run()
    assert counts(report) == NOTHING | {"added": 2, "unchanged": 5}
    assert report.rows == first.rows + report.new_rows
    assert ran["write_keys"] == -(-report.new_rows // 128)
    assert bytes_of(tmp_path / "s.knnstore" / "segments" / "0000") == before
    assert "2 added, 0 changed, 5 unchanged" in ingest_text(report)
    again, ran = run()
    assert counts(again) == NOTHING | {"unchanged": 7}
    assert "write_keys" not in ran
    assert [change.kind for change in changes(tmp_path / "s.knnstore")] == ["ingest", "ingest"]


def test_the_store_is_then_that_of_the_same_documents_made_at_once(run, books, texts, tmp_path):
    """Keys and values are the very same, as float16 knows no scales; nothing is held out, so all are stored."""
    run(key_dtype="float16", holdout=0.0)
    for name in NAMES[5:8]:
        (books / name).write_text(texts[name])
    run(key_dtype="float16", holdout=0.0)
    run(key_dtype="float16", holdout=0.0, store="whole")
    parts, whole = Datastore(tmp_path / "s.knnstore"), Datastore(tmp_path / "whole.knnstore")
    assert live_texts(parts) == live_texts(whole)
    keys = {}
    for store in (parts, whole):
        rows = [segment.keys(0, segment.rows) for segment in store.segments]
        values = np.concatenate([segment.values(0, segment.rows) for segment in store.segments])
        keys[store.name] = sorted(zip(values.tolist(), map(bytes, np.concatenate(rows)), strict=True))
    assert keys["s"] == keys["whole"]


def test_a_changed_document_replaces_the_old_one_and_one_that_is_gone_is_pruned_on_request(run, books, texts, tmp_path):
    run(holdout=0.0)
    (books / NAMES[0]).write_text("quite another text, " * 20)
    (books / NAMES[1]).rename(books / "renamed.txt")
    (books / NAMES[2]).unlink()
    report, _ = run()
    assert counts(report) == NOTHING | {"changed": 1, "unchanged": 3, "gone": 1}
    store = Datastore(tmp_path / "s.knnstore")
    assert len(live_texts(store)) == 5
    assert live_texts(store)[f"books/{NAMES[0]}"] != live_texts(store)[f"books/{NAMES[3]}"]
    assert sum(map(len, store.removed.values())) == 1
    report, ran = run(prune=True)
    assert counts(report) == NOTHING | {"unchanged": 4, "gone": 1, "pruned": 1}
    assert "write_keys" not in ran
    assert f"books/{NAMES[2]}" not in live_texts(Datastore(tmp_path / "s.knnstore"))
    (books / NAMES[2]).write_text(texts[NAMES[2]])
    assert counts(run()[0]) == NOTHING | {"added": 1, "unchanged": 4}  # pruned isn't taken down


def test_a_document_of_a_later_segment_may_change_while_the_first_segment_stays_as_it_is(run, books, texts):
    run(holdout=0)
    (books / NAMES[5]).write_text(texts[NAMES[5]])
    run(holdout=0)
    (books / NAMES[5]).write_text(texts[NAMES[6]])
    report, _ = run(holdout=0)
    assert (report.changed, report.unchanged) == (1, 5)


def test_a_run_with_other_patterns_adds_what_they_choose_and_prunes_nothing_else(run, books, texts, tmp_path):
    for name, other in (("a.py", NAMES[5]), ("gone.py", NAMES[6])):
        (books / name).write_text(texts[other])
    run(include=("*.py",), holdout=0.0)
    report, _ = run(prune=True, exclude=("*.py", NAMES[4]))
    assert counts(report) == NOTHING | {"added": 4}
    (books / "gone.py").unlink()
    assert counts(run(prune=True, exclude=(NAMES[4],))[0]) == NOTHING | {"unchanged": 4}
    assert counts(run(prune=True, include=("*.rst", NAMES[4]))[0]) == NOTHING | {"added": 1}
    assert counts(run(prune=True, include=("*.py",))[0]) == NOTHING | {"unchanged": 1, "gone": 1, "pruned": 1}
    assert len(live_texts(Datastore(tmp_path / "s.knnstore"))) == 6


def test_an_interrupted_run_is_not_finished_with_other_patterns(run, books, texts):
    (books / "a.py").write_text(texts[NAMES[5]])
    with pytest.raises(InterruptedError):
        run(most=2)
    with pytest.raises(MismatchError, match="started with another corpus"):
        run(include=("*.txt", "*.py"))
    report, _ = run(include=("*.txt",))  # which lists the same files
    assert report.documents == 5


def test_another_corpus_is_added_and_makes_nothing_of_the_first_gone(run, books, texts, tmp_path):
    run()
    more = tmp_path / "more"
    more.mkdir()
    (more / "a.txt").write_text(texts[NAMES[6]])
    shutil.copy(books / NAMES[0], more / "copy.txt")
    report, _ = run(corpus=("more",), prune=True)
    assert counts(report) == NOTHING | {"added": 1, "unchanged": 1}
    assert report.documents == 6


def test_records_of_a_file_are_told_apart_by_their_texts(run, books, texts, tmp_path):
    path = tmp_path / "records.jsonl"
    lines = [json.dumps({"text": text}) for text in list(texts.values())[:4]]
    path.write_text("\n".join(lines))
    run(corpus=("records.jsonl",), holdout=0.0)
    other, another = (json.dumps({"text": f"{word} text of another kind " * 9}) for word in ("one", "two"))
    path.write_text("\n".join([other, *lines[:2], another, lines[3]]))  # the third is another, all numbers have moved
    report, _ = run(corpus=("records.jsonl",), holdout=0.0)
    assert counts(report) == NOTHING | {"added": 2, "unchanged": 3, "gone": 1}
    assert report.documents == 6


def test_what_was_removed_on_purpose_stays_out_until_it_is_readmitted(run, books, texts, tmp_path):
    run(holdout=0.0)
    name = NAMES[0]
    remove(tmp_path / "s.knnstore", [f"books/{name}"])
    report, _ = run(holdout=0.0)
    assert counts(report) == NOTHING | {"unchanged": 4, "withheld": 1}
    compact(tmp_path / "s.knnstore", CompactOptions(), Job())
    assert counts(run(holdout=0.0)[0]) == NOTHING | {"unchanged": 4, "withheld": 1}
    assert "1 removed earlier" in ingest_text(report)
    assert counts(run(holdout=0.0, readmit=True)[0]) == NOTHING | {"added": 1, "unchanged": 4}


def test_held_out_documents_stay_held_out_in_their_new_versions_too(run, books, texts, tmp_path):
    run()
    (segment,) = Datastore(tmp_path / "s.knnstore").segments
    held = [str(segment.documents[int(number)]) for number in segment.documents.heldout()]
    assert len(held) == 2
    text = texts[held[0].removeprefix("books/")]
    (books / held[0].removeprefix("books/")).write_text(f"{text} and a few words more")
    report, _ = run()
    assert counts(report) == NOTHING | {"changed": 1, "unchanged": 4}
    store = Datastore(tmp_path / "s.knnstore")
    found = [str(s.documents[int(number)]) for s in store.segments for number in store.heldout(s)]
    assert sorted(found) == sorted(held)
    assert store.segments[1].rows == 0
    assert report.heldout_documents == 2
    assert (tmp_path / "s.knnstore" / "segments" / "0001").is_dir()
    compact(tmp_path / "s.knnstore", CompactOptions(), Job())
    (segment,) = Datastore(tmp_path / "s.knnstore").segments
    assert len(segment.documents.heldout()) == 2
    assert len(segment.queries()) == len(segment.query_tokens()) > 0


@pytest.mark.parametrize("most", range(1, 8))
def test_an_interrupted_append_goes_on_and_leaves_the_bytes_of_one_that_was_not(run, books, texts, bytes_of, most):
    run()
    shutil.copytree("s.knnstore", "whole.knnstore")
    for name in NAMES[5:8]:
        (books / name).write_text(texts[name])
    (books / NAMES[0]).write_text(texts[NAMES[0]] + " changed")
    (books / NAMES[1]).unlink()
    _, every = run(store="whole", prune=True)
    assert every["write_keys"] >= 4
    with pytest.raises(InterruptedError):
        run(most=most, prune=True)  # describe, survey, find the padding, tokenise, samples, then chunks of keys
    _, left = run(prune=True)
    assert left["write_keys"] == every["write_keys"] - max(0, most - 5)
    assert left.get("find_padding", 0) == (most < 3)
    assert bytes_of(Path("s.knnstore")) == bytes_of(Path("whole.knnstore"))


def test_an_interrupted_append_is_finished_first_if_the_corpus_has_changed_meanwhile(run, books, texts, tmp_path):
    run()
    (books / "new.txt").write_text(texts[NAMES[5]])
    with pytest.raises(InterruptedError):
        run(most=6)  # describe, survey, find the padding, tokenise, samples, one chunk of keys
    (books / "newer.txt").write_text(texts[NAMES[6]])
    report, _ = run()
    assert counts(report) == NOTHING | {"added": 1, "unchanged": 6}
    assert [change.kind for change in changes(tmp_path / "s.knnstore")] == ["ingest"] * 3
    assert not list((tmp_path / "s.knnstore" / "segments").glob("*/append"))
    assert len(live_texts(Datastore(tmp_path / "s.knnstore"))) == 7


def test_an_append_that_had_not_its_tokens_yet_is_begun_anew(run, books, texts, tmp_path):
    run()
    (books / "new.txt").write_text(texts[NAMES[5]])
    with pytest.raises(InterruptedError):
        run(most=2)
    (books / "newer.txt").write_text(texts[NAMES[6]])
    assert counts(run()[0]) == NOTHING | {"added": 2, "unchanged": 5}
    assert sorted(path.name for path in (tmp_path / "s.knnstore" / "segments").iterdir()) == ["0000", "0001"]


def test_keys_of_another_kind_are_refused(run, books):
    run()
    for change, told in (
        ({"context": 32}, r"key\.context 64 \(now 32\)"),
        ({"key_dtype": "float16"}, "key_dtype int8"),
    ):
        with pytest.raises(MismatchError, match=told):
            run(**change)


def test_new_segments_take_the_scales_of_the_first(run, books, texts, tmp_path):
    run()
    (books / "new.txt").write_text(texts[NAMES[5]])
    run()
    first, second = Datastore(tmp_path / "s.knnstore").segments
    np.testing.assert_array_equal(first.codec.scales, second.codec.scales)
