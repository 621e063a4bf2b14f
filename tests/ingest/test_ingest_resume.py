"""An ingest that stops at any task goes on where it stopped, and leaves the bytes of one that never did."""

import pytest

from knnstore.datastore.store import Datastore
from knnstore.errors import CorpusError, MismatchError, ResourceError, UnfinishedError, UsageError
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.scheduling import Job

TASKS = 8  # describe, find the padding, tokenise, samples and four chunks of keys


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tiny_corpus):
    """Five short documents: 1,600 tokens or so."""
    folder = tmp_path_factory.mktemp("corpus") / "books"
    folder.mkdir()
    for path in sorted(tiny_corpus.iterdir())[:5]:
        (folder / path.name).write_text(path.read_text()[:900])
    return folder


@pytest.fixture
def run(corpus, tmp_path, counting_runner):
    """Ingest into ``name``; returns the report and how many tasks of each kind ran."""

    def ingested(name="s", most=None, memory=4 * 10**9, **options):
        runner = counting_runner(most)
        options = {"corpus": (str(corpus),), "store": str(tmp_path / name), "chunk_rows": 256, "context": 64} | options
        return ingest(IngestOptions(**options), Job(runner, memory=memory)), runner.ran

    return ingested


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory, counting_runner, bytes_of):
    """The bytes of a run that nothing interrupted."""
    runner, root = counting_runner(), tmp_path_factory.mktemp("whole") / "s.knnstore"
    ingest(IngestOptions((str(corpus),), store=str(root), chunk_rows=256, context=64), Job(runner))
    assert runner.ran == {
        "describe_model": 1,
        "find_padding": 1,
        "tokenise": 1,
        "write_samples": 1,
        "write_keys": TASKS - 4,
    }
    return bytes_of(root)


@pytest.mark.parametrize("most", range(TASKS))
def test_an_interrupted_ingest_runs_what_is_left_and_no_more(run, whole, tmp_path, bytes_of, most):
    with pytest.raises(InterruptedError):
        run(most=most)
    if most:
        with pytest.raises(UnfinishedError, match=r"run the same knnstore\.ingest\(\) again"):
            Datastore(tmp_path / "s.knnstore")
    report, ran = run()
    left = {"tokenise": most < 3, "write_samples": most < 4, "write_keys": min(TASKS - 4, TASKS - most)}
    assert {name: ran[name] for name in left} == left
    assert report.tasks_run == left["tokenise"] + left["write_keys"]
    assert bytes_of(tmp_path / "s.knnstore") == whole


def test_interrupted_after_every_single_task_it_still_arrives(run, whole, tmp_path, bytes_of):
    for _ in range(TASKS - 2):
        with pytest.raises(InterruptedError):
            run(most=2)  # describing the LM, and one task more
    run(most=2)
    assert bytes_of(tmp_path / "s.knnstore") == whole


def test_a_lost_chunk_is_made_again_and_it_alone(run, whole, tmp_path, bytes_of):
    run()
    chunk = tmp_path / "s.knnstore" / "segments" / "0000" / "keys" / "c" / "2" / "0"
    chunk.unlink()
    _, ran = run()
    assert ran == {"describe_model": 1, "survey": 1, "write_keys": 1}
    assert bytes_of(tmp_path / "s.knnstore") == whole


def test_leftovers_of_a_killed_writer_are_swept(run, whole, tmp_path, bytes_of):
    run(name="t")
    root = tmp_path / "t.knnstore" / "segments" / "0000"
    for name in ("keys/c/0/0.abc.partial", "commits/keys-000000.json.17.tmp"):
        (root / name).write_bytes(b"half")
    run(name="t")
    assert bytes_of(tmp_path / "t.knnstore") == whole


def test_a_finished_store_is_left_alone(run, whole, tmp_path, bytes_of):
    run()
    report, ran = run()
    assert (report.tasks_run, report.tokens_per_second, ran) == (0, 0, {"describe_model": 1, "survey": 1})
    assert bytes_of(tmp_path / "s.knnstore") == whole


CHANGES = [
    ({"context": 32}, r"key\.context 64 \(now 32\)"),
    ({"stride": 16}, r"key\.stride 32 \(now 16\)"),
    ({"key": "hidden"}, r"key\.layer ffn-input \(now hidden\)"),
    ({"key_dtype": "float16"}, r"key_dtype int8 \(now float16\)"),
]
OTHERS = [
    ({"holdout": 0.5}, r"holdout 0\.01 \(now 0\.5\)"),
    ({"chunk_rows": 128}, r"chunk_rows 256 \(now 128\)"),
    ({"errors": "replace"}, r"errors strict \(now replace\)"),
    ({"text_field": "body"}, r"text_field text \(now body\)"),
    ({"dtype": "float16"}, r"compute .* \(now float16 on cpu\)"),
]
_name = lambda change: next(iter(change)) if isinstance(change, dict) else ""  # noqa: E731


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=_name)
def test_other_keys_than_the_store_has_are_refused_by_name(run, change, told):
    run()
    with pytest.raises(MismatchError, match=f"holds keys of other settings: {told}.*overwrite=True"):
        run(**change)


@pytest.mark.parametrize("change", [change for change, _ in OTHERS if "dtype" not in change], ids=_name)
def test_another_way_to_read_or_hold_out_is_for_new_documents_alone(run, whole, tmp_path, bytes_of, change):
    run()
    report, ran = run(**change)
    assert (report.unchanged, ran["write_keys"]) == (5, 0)
    assert bytes_of(tmp_path / "s.knnstore") == whole


@pytest.mark.parametrize(("change", "told"), CHANGES + OTHERS, ids=_name)
def test_another_setting_for_an_unfinished_store_is_refused_by_name(run, change, told):
    with pytest.raises(InterruptedError):
        run(most=4)
    with pytest.raises(MismatchError, match=f"was started with another corpus or other settings: {told}"):
        run(**change)


def test_another_corpus_for_an_unfinished_store_is_refused(run, corpus, tmp_path):
    with pytest.raises(InterruptedError):
        run(most=4)
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("another text " * 100)
    with pytest.raises(MismatchError, match="was started with another corpus or other settings: sources"):
        run(corpus=(str(other),))


def test_overwrite_makes_the_store_anew(run, tmp_path, bytes_of, whole):
    run(key_dtype="float16", context=32)
    run(overwrite=True)
    assert bytes_of(tmp_path / "s.knnstore") == whole


def test_a_folder_that_is_no_store_is_never_overwritten(run, tmp_path):
    (tmp_path / "s.knnstore").mkdir()
    (tmp_path / "s.knnstore" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is no store but isn't empty"):
            run(overwrite=overwrite)
    assert (tmp_path / "s.knnstore" / "thesis.tex").read_text() == "years of work"


def test_the_memory_does_not_change_a_byte(run, whole, tmp_path, bytes_of):
    run(memory=2 * 10**9)
    assert bytes_of(tmp_path / "s.knnstore") == whole


def test_too_little_memory_is_refused_with_what_is_needed(run):
    with pytest.raises(ResourceError, match=r"memory='500 MB' is too little: .* needs 1.* GB"):
        run(memory=500 * 10**6)


def test_what_is_held_of_many_files_is_part_of_the_promise(run, monkeypatch):
    monkeypatch.setattr("knnstore.ingestion.plan._DOCUMENT_BYTES", 10**9)  # five files are as many as ten million else
    with pytest.raises(ResourceError, match=r"with 1 worker and 5 files needs 11\.\d GB"):
        run(memory=4 * 10**9)


@pytest.mark.parametrize(("options", "told"), [({"context": 257}, "1 to 256"), ({"stride": 65}, "stride=65")])
def test_windows_that_the_lm_cannot_take_are_refused(run, options, told):
    with pytest.raises(UsageError, match=told):
        run(**options)


def test_a_corpus_without_a_word_leaves_nothing_that_a_rerun_stumbles_over(run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.txt").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CorpusError, match="holds no text"):
            run(corpus=(str(empty),))
