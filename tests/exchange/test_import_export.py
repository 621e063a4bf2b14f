"""Stores out to other toolkits' files and back in: equal, resumable, and honest about what isn't known."""

import contextlib
import json
import shutil

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from knnstore.cli import main
from knnstore.datastore import segmentwriter
from knnstore.datastore.store import Datastore
from knnstore.errors import CorpusError, MismatchError, NumericsError, UsageError
from knnstore.exchange.exporting import ExportOptions, export
from knnstore.exchange.importing import ImportOptions, default_name, import_keys
from knnstore.exchange.memmaps import open_memmaps
from knnstore.exchange.rawfile import Form
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.lm.spec import SHIPPED_MODELS
from knnstore.scheduling import Job

WIDTH = 8


def run(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def exported(built, tmp_path_factory):
    """A folder with the store of the three commands and all its exports. Read only."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(built[0] / "books.knnstore", folder / "books.knnstore")
    with contextlib.chdir(folder):
        for to in ("memmap", "parquet", "faiss"):
            run("export", "--to", to)
        (keys,), (values,) = folder.glob("*_keys.npy"), folder.glob("*_vals.npy")
        run("import", "--keys", keys, "--vals", values, "--model", "wiki-lm", "--store", "again")
        run("index", "--store", "again", "--nlist", "64")
    return folder


@pytest.fixture
def here(exported, monkeypatch):
    monkeypatch.chdir(exported)
    return exported


@pytest.fixture
def memmaps(tmp_path):
    """A small pair of raw files: paths and contents."""
    rng = np.random.default_rng(3)
    keys, values = rng.normal(size=(2500, WIDTH)).astype(np.float16), rng.integers(0, 500, 2500).astype(np.int32)
    keys.tofile(tmp_path / "x_keys.npy")
    values.tofile(tmp_path / "x_vals.npy")
    return (tmp_path / "x_keys.npy", tmp_path / "x_vals.npy"), (keys, values)


def imported(paths, store, form=None, **others):
    return import_keys(
        open_memmaps(*paths, form or Form(WIDTH, key_type="float16")), ImportOptions(store=str(store), **others), Job()
    )


def test_a_round_trip_through_memmaps_is_equal_byte_for_byte(here, tmp_path):
    run("export", "--store", "again", "--out", tmp_path)
    for kind in ("keys", "vals"):
        (one,), (other,) = here.glob(f"dstore_books_*_{kind}.npy"), tmp_path.glob(f"dstore_again_*_{kind}.npy")
        assert one.read_bytes() == other.read_bytes()
        assert one.name.replace("books", "again") == other.name


def test_an_imported_store_has_the_rows_and_the_text_of_the_first_and_can_be_scored(here, built):
    books, again = Datastore(here / "books.knnstore"), Datastore(here / "again.knnstore")
    (mine,), (theirs,) = books.segments, again.segments
    np.testing.assert_array_equal(mine.values(0, mine.rows), theirs.values(0, theirs.rows))
    np.testing.assert_allclose(
        mine.codec.decode(mine.keys(0, 500)), theirs.codec.decode(theirs.keys(0, 500)), rtol=1e-3
    )
    assert (again.manifest.model, again.manifest.key) == (books.manifest.model, books.manifest.key)
    text = str(sorted((built[0] / "books").iterdir())[0])
    setting = ("--k", "32", "--lambda", "0.3", "--temperature", "20", "--exact", "--json", "--quiet")
    scores = [json.loads(run("score", "--store", s, "--text", text, *setting)) for s in ("books", "again")]
    assert scores[1]["knn"]["perplexity"] == pytest.approx(scores[0]["knn"]["perplexity"], rel=1e-3)
    assert "no held-out documents" in run("score", "--store", "again", code=2)


def test_parquet_has_a_row_for_every_token_with_its_document(here):
    table = pq.read_table(here / "books.parquet")
    (segment,) = Datastore(here / "books.knnstore").segments
    assert table.column("row").to_pylist() == list(range(segment.rows))
    np.testing.assert_array_equal(table.column("token_id").to_numpy(), segment.values(0, segment.rows))
    keys = table.column("key").combine_chunks().flatten().to_numpy().reshape(segment.rows, -1)
    np.testing.assert_array_equal(keys, segment.codec.decode(segment.keys(0, segment.rows)).astype(np.float16))
    last = table.slice(segment.rows - 1).to_pylist()[0]
    document = int(segment.documents.locate(np.array([segment.rows - 1]))[0])
    assert last["document"] == str(segment.documents[document])
    assert last["position"] == int(segment.documents.tokens[document]) - 1


def test_faiss_reads_the_index_and_finds_what_the_store_finds(here):
    (file,) = here.glob("index_books_*.indexed")
    index = faiss.read_index(str(file))
    store = Datastore(here / "books.knnstore")
    assert (index.ntotal, index.d) == (store.rows, 256)
    queries = store.segments[0].queries()[:32]
    distances, rows = index.search(queries, 10)
    ours = Searcher(store).search(queries, 10, method="quantised", rows=True)
    assert (rows == ours.rows).mean() > 0.8  # equal codes have equal distances, in any order
    np.testing.assert_allclose(distances, ours.distances, rtol=1e-4)


def test_removed_documents_are_in_no_export(here, tmp_path):
    store = Datastore(here / "books.knnstore")
    gone = int(np.flatnonzero(store.segments[0].documents.tokens)[1])
    store = store.masked({"0000": np.array([gone])})
    (segment,), (hidden,) = store.segments, store.hidden
    kept = hidden.outside(0, segment.rows)
    for to in ("memmap", "parquet", "faiss"):
        export(store, ExportOptions(to, tmp_path))
    values = np.fromfile(next(tmp_path.glob("*_vals.npy")), np.int32)
    np.testing.assert_array_equal(values, segment.values(0, segment.rows)[kept])
    table = pq.read_table(tmp_path / "books.parquet")
    assert table.column("row").to_pylist() == list(range(len(kept)))
    assert str(segment.documents[gone]) not in table.column("document").to_pylist()
    (file,) = tmp_path.glob("*.indexed")
    index = faiss.read_index(str(file))
    queries = segment.queries()[:8]
    index.nprobe = index.nlist
    found = Searcher(store).search(queries, 5, index.nlist, method="quantised", rows=True)
    distances, rows = index.search(queries, 5)
    np.testing.assert_allclose(distances, found.distances, rtol=1e-4)
    assert (kept[rows] == found.rows).mean() > 0.8  # equal codes have equal distances, in any order


def test_an_import_that_was_interrupted_goes_on_and_leaves_the_same_bytes(memmaps, tmp_path, monkeypatch, bytes_of):
    monkeypatch.setattr("knnstore.exchange.importing.chunk_rows", lambda *_: 1024)
    whole = imported(memmaps[0], tmp_path / "whole")
    assert (whole.tasks_run, whole.tasks_kept) == (3, 0)
    write, calls = segmentwriter.write_chunk, []

    def dying(path, chunk, block):
        calls.append(path.name)
        if calls.count("keys") == 3:
            raise InterruptedError
        return write(path, chunk, block)

    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(segmentwriter, "write_chunk", dying)
        imported(memmaps[0], tmp_path / "x")
    report = imported(memmaps[0], tmp_path / "x")
    assert (report.tasks_run, report.tasks_kept) == (1, 2)
    assert bytes_of(tmp_path / "x.knnstore") == bytes_of(tmp_path / "whole.knnstore")
    assert imported(memmaps[0], tmp_path / "x").tasks_run == 0


def test_int8_keys_are_near_and_float16_keys_are_equal(memmaps, tmp_path):
    paths, (keys, values) = memmaps
    for kind in ("float16", "int8"):
        imported(paths, tmp_path / "x", key_dtype=kind, overwrite=True)
        (segment,) = Datastore(tmp_path / "x.knnstore").segments
        stored = segment.codec.decode(segment.keys(0, segment.rows))
        np.testing.assert_allclose(stored, keys.astype(np.float32), atol=0 if kind == "float16" else 0.04)
        np.testing.assert_array_equal(segment.values(0, segment.rows), values)


def test_a_store_of_an_unknown_lm_can_be_indexed_and_searched_but_not_scored(memmaps, tmp_path, monkeypatch):
    paths, (keys, values) = memmaps
    monkeypatch.chdir(tmp_path)
    run("import", "--keys", paths[0], "--vals", paths[1], "--dim", WIDTH, "--key-type", "float16")
    run("index", "--store", "x", "--nlist", "16", "--pq-bytes", "4")
    store = Datastore(tmp_path / "x.knnstore")
    assert store.manifest.model.vocabulary == int(values.max()) + 1
    found = Searcher(store).search(keys[:50].astype(np.float32), 1, 16, rows=True)
    assert found.rows[:, 0].tolist() == list(range(50))
    told = run("score", "--store", "x", "--text", str(SHIPPED_MODELS / "wiki-lm" / "README.md"), code=1)
    assert "without the LM that made its keys" in told
    assert "unknown weights" in run("info", "x").replace("\n" + " " * 10, " ")


def test_keys_of_another_layer_or_another_order_are_refused(here, tmp_path):
    (keys,), (values,) = here.glob("*_keys.npy"), here.glob("*_vals.npy")
    given = ("--vals", values, "--model", "wiki-lm", "--store", tmp_path / "other")
    assert "look like the ffn-input of wiki-lm, not its hidden" in run(
        "import", "--keys", keys, *given, "--key", "hidden", code=1
    )
    shifted = tmp_path / "shifted_keys.npy"
    array = np.fromfile(keys, np.float16).reshape(-1, 256)
    np.roll(array, 1, axis=0).tofile(shifted)
    form = ("--dim", 256, "--key-type", "float16")
    assert "aren't the keys of wiki-lm" in run("import", "--keys", shifted, *form, *given, code=1)
    trusted = ("--key", "ffn-input", "--no-check", "--json")
    assert json.loads(run("import", "--keys", shifted, *form, *given, *trusted))["likeness"] is None
    assert "can't determine the layer" in run("import", "--keys", keys, *given, "--no-check", code=2)


def test_a_model_of_another_width_is_refused(memmaps, tmp_path):
    with pytest.raises(MismatchError, match="are 256 wide"):
        imported(memmaps[0], tmp_path / "x", model="wiki-lm")


@pytest.mark.parametrize(
    ("values", "vocabulary", "told"),
    [
        (np.array([1, 2, -3], np.int64), None, "value -3 of row 2 is negative"),
        (np.array([1, 2, 40000], np.uint16).astype(np.int16), None, "overflowed int16"),
        (np.array([1, 2, 3], np.int32), 3, "value 3 of row 2 isn't a token of a vocabulary of 3"),
    ],
)
def test_values_that_are_no_tokens_are_named(tmp_path, values, vocabulary, told):
    keys = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float16)
    keys.tofile(tmp_path / "k")
    values.tofile(tmp_path / "v")
    form = Form(WIDTH, 3, "float16", values.dtype.name)
    with pytest.raises(CorpusError, match=told):
        imported((tmp_path / "k", tmp_path / "v"), tmp_path / "s", form, vocabulary=vocabulary)


def test_int16_values_that_overflowed_are_told_where_the_vocabulary_is_small_enough(tmp_path):
    tokens = np.array([5, 40000, 50256], np.uint16)
    np.ones((3, WIDTH), np.float16).tofile(tmp_path / "k")
    tokens.astype(np.int16).tofile(tmp_path / "v")
    form = Form(WIDTH, 3, "float16", "int16")
    imported((tmp_path / "k", tmp_path / "v"), tmp_path / "s", form, vocabulary=50257)
    assert Datastore(tmp_path / "s.knnstore").segments[0].values(0, 3).tolist() == tokens.tolist()


def test_a_key_that_is_no_number_is_named_with_its_row(memmaps, tmp_path):
    paths, (keys, _) = memmaps
    keys[1234, 3] = np.nan
    keys.tofile(paths[0])
    with pytest.raises(NumericsError, match="row 1,234"):
        imported(paths, tmp_path / "x")


def test_a_store_of_something_else_is_never_overwritten_unasked(memmaps, tmp_path, exported):
    shutil.copytree(exported / "books.knnstore", tmp_path / "x.knnstore")
    with pytest.raises(MismatchError, match="holds something else"):
        imported(memmaps[0], tmp_path / "x")
    (tmp_path / "y.knnstore").mkdir()
    (tmp_path / "y.knnstore" / "letters.txt").write_text("mine")
    with pytest.raises(UsageError, match="isn't empty"):
        imported(memmaps[0], tmp_path / "y")


def test_an_export_replaces_nothing_unasked_and_leaves_nothing_half_done(here, tmp_path):
    assert "--overwrite" in run("export", "--store", "books", code=2)
    wide = run("export", "--store", "books", "--value-type", "int16", "--out", tmp_path, "--json")
    assert json.loads(wide)["rows"] == Datastore(here / "books.knnstore").rows
    assert not list(tmp_path.glob("*.tmp"))
    shutil.copytree(here / "again.knnstore", tmp_path / "bad.knnstore")
    chunk = tmp_path / "bad.knnstore" / "segments" / "0000" / "values" / "c" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-3] + b"abc")
    run("export", "--store", tmp_path / "bad", "--out", tmp_path / "out", code=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_faiss_file_needs_an_index(memmaps, tmp_path):
    imported(memmaps[0], tmp_path / "x")
    assert "has no finished index" in run("export", "--store", tmp_path / "x", "--to", "faiss", code=1)


def test_the_store_is_named_after_the_keys(tmp_path):
    names = {"dstore_gpt2_9_8_keys.npy": "dstore_gpt2_9_8", "wiki/keys.npy": "wiki", "wiki.keys": "wiki", "k": "k"}
    assert {name: default_name(tmp_path / name) for name in names} == names
