"""Each text is in a store once, however often the corpus has it, and none is both stored and held out."""

import json
import random
import runpy
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.cli.report.ingest import ingest_text
from knnstore.corpus.parts import plan_parts
from knnstore.datastore.store import Datastore
from knnstore.ingestion import append, job, survey
from knnstore.ingestion.copies import first_of_each
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions, older_plan, segment_plan
from knnstore.scheduling import Job, SerialRunner
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions
from knnstore.verification.check import verify

WORDS = "river mill stone bridge winter captain letter garden market silver engine window harbour music".split()  # noqa: SIM905


def text_of(number, words=60):
    draw = random.Random(number)
    return " ".join(draw.choice(WORDS) for _ in range(words))


TEXTS = [text_of(number) for number in range(6)]


@pytest.fixture
def books(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    return tmp_path / "books"


@pytest.fixture
def run(counting_runner):
    def ingested(store="s", corpus="books", most=None, **options):
        settings = {"chunk_rows": 64, "context": 64, "holdout": 0.2} | options
        runner = counting_runner(most)
        return ingest(IngestOptions((corpus,), store=store, **settings), Job(runner)), runner.ran

    return ingested


def contents(root):
    """How often each text is stored, and how often it is held out, of those that aren't removed: by digest."""
    store, stored, held = Datastore(root), Counter(), Counter()
    for segment in store.segments:
        removed = set(store.removed.get(segment.root.name, np.empty(0)).tolist())
        for number, digest in enumerate(segment.documents.sha256.tolist()):
            if number not in removed:
                stored[digest] += segment.documents.tokens[number] > 0
                held[digest] += segment.documents.heldout_tokens[number] > 0
    return +stored, +held


def arrays_of(files):
    """The chunks of keys, values and held-out tokens."""
    return {name: data for name, data in files.items() if "/c/" in name}


def each_once(root, texts):
    stored, held = contents(root)
    assert set((stored + held).values()) == {1}
    assert len(stored + held) == texts


@given(st.lists(st.integers(0, 5)))
def test_the_first_of_each_is_found_in_whatever_order(numbers):
    digests = np.array([bytes([number]) * 31 + b"\0" for number in numbers], "S32")
    assert first_of_each(digests).tolist() == [number not in numbers[:place] for place, number in enumerate(numbers)]


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_copy_in_any_place_leaves_the_keys_of_the_corpus_without_it(run, books, bytes_of, place):
    every = [*TEXTS[:place], TEXTS[2], *TEXTS[place:]]
    for name, texts in (("once", dict.fromkeys(every)), ("books", every)):
        (books.parent / name).mkdir(exist_ok=True)
        (books.parent / name / "records.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    once, report = run(store="once", corpus="once")[0], run()[0]
    assert (once.copies, report.copies, report.documents, report.rows) == (0, 1, 6, once.rows)
    each_once(books.parent / "s.knnstore", 6)
    arrays = arrays_of(bytes_of(books.parent / "s.knnstore"))
    assert arrays == arrays_of(bytes_of(books.parent / "once.knnstore"))
    assert "1 left out as copies" in ingest_text(report)
    assert verify(books.parent / "s.knnstore").damages == ()


def test_a_store_made_at_once_is_that_which_grew_by_the_same_texts(run, books, bytes_of):
    for number, text in enumerate(TEXTS):
        (books / f"a{number}.txt").write_text(text)
    run(store="once")
    for number, text in enumerate(TEXTS):
        (books / f"copy{number}.txt").write_text(text)
    report, _ = run(store="grown")
    again, ran = run(store="once")
    assert (report.added, report.copies, again.unchanged, again.rows) == (6, 6, 12, report.rows)
    assert "write_keys" not in ran
    once, grown = (bytes_of(books.parent / f"{store}.knnstore") for store in ("once", "grown"))
    assert arrays_of(once) == arrays_of(grown)


def test_an_append_takes_each_new_text_once_and_none_that_is_stored_or_held_out(run, books):
    for number, text in enumerate(TEXTS[:5]):
        (books / f"m{number}.txt").write_text(text)
    run()
    for number, text in enumerate(TEXTS[:5]):  # copies of all, before and behind
        (books / f"{'az'[number % 2]}{number}.txt").write_text(text)
    for name in ("b", "n", "y"):
        (books / f"{name}.txt").write_text(TEXTS[5])
    report, _ = run()
    assert (report.added, report.copies, report.unchanged, report.gone) == (1, 2, 10, 0)
    each_once(books.parent / "s.knnstore", 6)
    report, ran = run()
    assert (report.added, report.copies, report.unchanged) == (0, 0, 13)
    assert "tokenise" not in ran


@pytest.mark.parametrize("new", [False, True])
def test_a_document_that_becomes_a_copy_leaves_its_old_text(run, books, new):
    for number, text in enumerate(TEXTS[:5]):
        (books / f"m{number}.txt").write_text(text)
    run(holdout=0.0)
    (books / "m4.txt").write_text(TEXTS[5] if new else TEXTS[0])
    if new:
        (books / "a.txt").write_text(TEXTS[5])
    report, _ = run(holdout=0.0)
    assert (report.added, report.copies, report.changed, report.gone) == ((1, 1, 0, 0) if new else (0, 0, 1, 0))
    each_once(books.parent / "s.knnstore", 5 if new else 4)


def test_the_order_in_which_parts_are_done_changes_nothing(run, books, monkeypatch, bytes_of):
    for number, text in enumerate([*TEXTS, *TEXTS[::-1]]):
        (books / f"{number:02}.txt").write_text(text)
    monkeypatch.setattr(job, "plan_parts", partial(plan_parts, part_files=2))
    run(store="forth")

    class Backwards(SerialRunner):
        def run(self, function, tasks):
            yield from SerialRunner.run(self, function, reversed(list(tasks)))

    options = {"chunk_rows": 64, "context": 64, "holdout": 0.2}
    ingest(IngestOptions(("books",), store="back", **options), Job(Backwards()))
    assert bytes_of(books.parent / "back.knnstore") == bytes_of(books.parent / "forth.knnstore")
    each_once(books.parent / "back.knnstore", 6)


@pytest.fixture
def older():
    """Ingest as versions did that knew nothing of copies, until ``older.undo()``."""

    def plan(*arguments):
        return older_plan(segment_plan(*arguments))

    with pytest.MonkeyPatch.context() as patch:
        for module in (job, append):
            patch.setattr(module, "padded", lambda plan, *_: plan)
        patch.setattr(job, "segment_plan", plan)
        patch.setattr(survey, "first_of_each", lambda digests: np.ones(len(digests), bool))
        yield patch


@pytest.mark.parametrize("most", [2, 3, 5])
def test_what_an_older_version_began_is_finished_with_each_text_once(run, books, older, bytes_of, most):
    for number, text in enumerate([*TEXTS, *TEXTS[2:5]]):
        (books / f"{number}.txt").write_text(text)
    with pytest.raises(InterruptedError):
        run(most=most)
    older.undo()
    report, ran = run()
    assert (report.documents, report.copies, report.added) == (6, 3, 6)
    assert ran["tokenise"] == 0  # what was finished isn't done again
    each_once(books.parent / "s.knnstore", 6)
    assert verify(books.parent / "s.knnstore").damages == ()
    again, ran = run()
    assert (again.unchanged, again.rows, ran["write_keys"]) == (9, report.rows, 0)


def test_parts_that_an_older_version_tokenised_become_the_store_of_the_present_one(
    run, books, older, bytes_of, monkeypatch
):
    for number, text in enumerate([*TEXTS, *TEXTS[2:5]]):
        (books / f"{number}.txt").write_text(text)
    monkeypatch.setattr(job, "plan_parts", partial(plan_parts, part_files=2))
    with pytest.raises(InterruptedError):
        run(most=3)  # describe, two parts of five
    older.undo()
    _, ran = run()
    assert ran["tokenise"] == 3
    run(store="new")
    stores = [books.parent / f"{name}.knnstore" for name in ("s", "new")]
    assert arrays_of(bytes_of(stores[0])) == arrays_of(bytes_of(stores[1]))
    assert [Datastore(store).removed for store in stores] == [{}, {}]  # nothing had to be hidden
    begun, new = (Datastore(store).segments[0].plan for store in stores)
    assert (begun.special_tokens, new.special_tokens) == (None, False)  # its parts have them where the text spells them
    assert replace(begun, special_tokens=False) == new


def test_an_append_that_an_older_version_began_is_finished_with_each_text_once(run, books, older):
    (books / "a.txt").write_text(TEXTS[0] * 4)
    run(holdout=0.0)
    for number, text in enumerate([*TEXTS[1:5], *TEXTS[1:3]]):
        (books / f"{number}.txt").write_text(text)
    with pytest.raises(InterruptedError):
        run(most=5, holdout=0.0)  # describe, survey, tokenise, samples, a chunk of keys
    older.undo()
    report, _ = run(holdout=0.0)
    each_once(books.parent / "s.knnstore", 5)
    assert report.documents == 5


def test_what_is_held_out_is_what_nothing_repeats_as_far_as_there_is_such_text(run, books):
    clean = {f"books/{number:02}.txt" for number in range(4)}
    for number in range(8):
        (books / f"{number:02}.txt").write_text(text_of(number, 150))
    for number in range(4, 8):  # another edition
        (books / f"again{number:02}.txt").write_text(text_of(number, 150) + f" The end of number {number}.")
    run(holdout=0.25)
    (segment,) = Datastore(books.parent / "s.knnstore").segments
    held = {str(segment.documents[int(number)]) for number in segment.documents.heldout()}
    assert len(held) == 3 and held < clean
    (books / "new1.txt").write_text(text_of(5, 150) + " And more.")
    (books / "new2.txt").write_text(text_of(99, 150))
    run(holdout=0.5)  # one of the two
    store = Datastore(books.parent / "s.knnstore")
    assert [str(store.segments[1].documents[int(n)]) for n in store.heldout(store.segments[1])] == ["books/new2.txt"]


def test_the_report_of_a_corpus_with_each_text_twice(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KNNSTORE_MODEL")  # the report has perplexities of the shipped LM
    script = shared / "reports" / "duplicates.py"
    runpy.run_path(str(script))

    def made(store, holdout=0.1):
        return ingest(IngestOptions(("dup",), store=store, holdout=holdout), Job())

    def perplexity(store):
        return score(ScoreOptions(exact=True), Datastore(tmp_path / f"{store}.knnstore")).knn.perplexity

    assert (made("dup").rows, Datastore(tmp_path / "dup.knnstore").live_rows) == (1626, 1626)
    for path in tmp_path.glob("dup/copy_*"):
        path.unlink()
    assert made("once").rows == 1626
    runpy.run_path(str(script))
    again = made("once", 0.01)
    assert (again.added, again.unchanged, again.rows) == (0, 24, 1626)
    assert perplexity("dup") == pytest.approx(perplexity("once")) == pytest.approx(4.74, abs=0.1)
    shutil.rmtree(tmp_path / "dup")
