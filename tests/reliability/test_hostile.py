"""A store from a stranger: errors of ours at worst, nothing read outside of it, nothing allocated on its word."""

import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from faults.material import run

from knnstore.datastore.arrays import create_array, open_array, read_rows, write_chunk
from knnstore.datastore.documents import DocumentName
from knnstore.datastore.locking import LOCK_FILE, writing
from knnstore.datastore.manifest import MANIFEST_FILE
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError, KnnstoreError
from knnstore.files import load_json, write_json
from knnstore.indexes.ivfpq.quantiser import load_training_errors
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.registry import open_index
from knnstore.verification.check import verify


@pytest.mark.slow
def test_mutated_stores_are_refused_or_used_and_nothing_worse(tortured):
    tortured("hostile", cases=150, seed=3)


@pytest.mark.parametrize("name", ["segments/0000/values/c/0", "segments/0000/segment.json", "index"])
def test_a_link_in_a_store_is_refused_whatever_it_points_to(root, tmp_path, name):
    (root / name).rename(tmp_path / "outside")
    (root / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CorruptStoreError, match="is a link: a store holds plain files alone"):
        Datastore(root)
    with pytest.raises(CorruptStoreError, match="is a link"), writing(root):
        pass


def test_a_fifo_is_not_waited_for(root):
    path = root / "segments/0000/segment.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptStoreError, match="neither a file nor a folder"):
        Datastore(root)
    with pytest.raises(CorruptStoreError, match="not a regular file"):
        load_json(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_manifest_that_is_no_file_is_damage_and_not_waited_for(root, make):
    (root / MANIFEST_FILE).unlink()
    make(root / MANIFEST_FILE)
    assert not verify(root).intact


def test_a_lock_that_is_a_link_leaves_the_file_that_it_points_to_alone(here):
    (here / "thesis.tex").write_text("years of work")
    (here / "books.knnstore" / LOCK_FILE).unlink(missing_ok=True)
    (here / "books.knnstore" / LOCK_FILE).symlink_to(here / "thesis.tex")
    code, told = run(here, "index", "--store", "books")
    assert (code, "is a link" in told) == (1, True)
    assert (here / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "keys/../../x", "keys//x", "", "keys/\0"])
def test_a_record_of_a_file_outside_is_refused(root, path):
    record = root / "segments/0000/commits/documents.json"
    value = load_json(record)
    value["files"][0]["path"] = path
    write_json(record, value)
    with pytest.raises(CorruptStoreError, match="is no path inside the store"):
        _ = Datastore(root).segments[0].rows


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2**40, 3]},
        {"shape": [-1, 3]},
        {"shape": [25, "3"]},
        {"data_type": "float64"},
        {"data_type": "object"},
        {"fill_value": 7},
        {"codecs": [{"name": "bytes"}, {"name": "blosc"}, {"name": "crc32c"}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 3]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**45, 3]}}},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
        {"storage_transformers": [{"name": "x"}]},
    ],
)
@pytest.mark.parametrize("compression", ["none", "keys"])
def test_metadata_that_is_not_written_here_is_refused_before_anything_is_allocated(tmp_path, change, compression):
    data = np.ones((25, 3), np.int8)
    create_array(tmp_path / "g" / "a", data.shape, 10, data.dtype, compression)
    write_chunk(tmp_path / "g" / "a", 0, data[:10])
    metadata = tmp_path / "g" / "a" / "zarr.json"
    metadata.write_text(__import__("json").dumps(load_json(metadata) | change))
    with pytest.raises(CorruptStoreError):
        read_rows(tmp_path / "g" / "a", 0, 20)


def test_a_chunk_that_unpacks_to_more_than_it_should_is_refused_unpacked(tmp_path):
    from google_crc32c import value
    from numcodecs import zstd

    create_array(tmp_path / "g" / "a", (10, 3), 10, np.dtype(np.int8), "keys")
    file = write_chunk(tmp_path / "g" / "a", 0, np.ones((10, 3), np.int8))
    bomb = bytes(zstd.compress(bytes(10**8), 1))
    file.write_bytes(bomb + value(bomb).to_bytes(4, "little"))
    with pytest.raises(CorruptStoreError, match=r"it holds 100000000 bytes, not 30|don't match the checksum"):
        read_rows(tmp_path / "g" / "a", 0, 10)


def test_names_from_a_store_do_not_move_the_cursor_of_a_terminal():
    assert str(DocumentName("a\x1b[2J.txt", 3, None)) == r"a\x1b[2J.txt#3"
    assert str(DocumentName("é – 書.txt", None, "x")) == "é – 書.txt#x"


def changed(root, name, change):
    """Change an array's only chunk, or a JSON's value, and make every checksum right again."""
    from faults.mutations import reseal

    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    (name,) = [path for path in files if PurePosixPath(path).match(name)]
    if name.endswith(".json"):
        write_json(root / name, change(load_json(root / name)))
        return
    folder = next(parent.parent for parent in (root / name).parents if parent.name == "c")
    form = open_array(folder)
    data = change(read_rows(folder, 0, min(form.chunk_rows, form.shape[0])).copy())
    files[name] = write_chunk(folder, 0, data).read_bytes()
    reseal(files, name)
    for path, content in files.items():
        (root / path).write_bytes(content)


def put(place, number):
    def change(data):
        data[place] = number
        return data

    return change


def search(root):
    store = Datastore(root)
    searcher = Searcher(store)
    queries = store.segments[0].queries()[:4]
    return searcher.search(queries, store.rows, searcher.plan.nlist, rows=True)


BEYOND = {
    "a token beyond the vocabulary": ("index/*/lists/0000/values/c/0", put(3, 60_000)),
    "a row beyond the segment": ("index/*/lists/0000/rows/c/0", put(3, 2**31)),
    "offsets that decrease": ("index/*/lists/0000/offsets/c/0", put(2, 0)),
    "a centroid of 1e38": ("index/*/quantizer/centroids/c/0/0", put((0, 0), 1e38)),
    "a centroid that is no number": ("index/*/quantizer/centroids/c/0/0", put((0, 0), np.nan)),
    "an infinite codebook": ("index/*/quantizer/codebooks/c/0/0/0", put((0, 0, 0), np.inf)),
    "a scale of 1e38": ("segments/0000/key_scales/c/0", put(0, 1e38)),
    "a query of 1e38": ("segments/0000/queries/c/0/0", put((0, 0), 1e38)),
    "a segment twice": ("knnstore.json", lambda value: value | {"segments": ["0000", "0000"]}),
    "a segment 50,000 times": ("knnstore.json", lambda value: value | {"segments": ["0000"] * 50_000}),
    "a segment indexed twice": ("knnstore.json", lambda value: value | {"indexed": ["0000", "0000"]}),
    "5,000 segments that aren't there": (
        "knnstore.json",
        lambda value: value | {"segments": ["0000", *(f"{n:05d}" for n in range(5_000))]},
    ),
    "a number larger than any": ("index/*/lists/0000/check.json", lambda value: value | {"recall": 10**400}),
    "no error of the training": ("index/*/commits/quantizer.json", lambda value: value | {"facts": {}}),
}


@pytest.mark.parametrize("case", BEYOND)
def test_what_contradicts_itself_is_refused_in_one_sentence_though_its_checksums_are_right(root, case):
    name, change = BEYOND[case]
    if case == "no error of the training":
        changed(root, name, change)
        with pytest.raises(CorruptStoreError, match="is no number"):
            load_training_errors(open_index(root, Datastore(root).manifest.index))
        return
    changed(root, name, change)
    with pytest.raises(KnnstoreError) as caught:
        search(root)
        _ = Searcher(Datastore(root)).check
    assert len(str(caught.value)) < 600
    code, told = run(root.parent, "info", "--store", "books")
    assert len(told) < 4000
    code, told = run(root.parent, "verify", "--store", "books")
    if "/lists/0000/" in name and not name.endswith(".json"):
        assert (code, "damaged   index/" in told) == (1, True), told


def test_a_row_that_the_lists_hold_twice_is_found_by_verify(root):
    def double(rows):
        rows[0] = rows[1]
        return rows

    changed(root, "index/*/lists/0000/rows/c/0", double)
    code, told = run(root.parent, "verify", "--store", "books")
    assert (code, "has a row twice" in told) == (1, True), told


@pytest.mark.parametrize("column", [0, 1])
def test_nulls_among_the_removed_documents_are_refused(root, column):
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(["0000", "0000"]), pa.array([0, 1])]
    columns[column] = pa.array([None, columns[column][1].as_py()], columns[column].type)
    (root / "removed").mkdir()
    pq.write_table(pa.table(columns, ["segment", "document"]), root / "removed" / "x")
    digest = hashlib.sha256((root / "removed" / "x").read_bytes()).hexdigest()[:16]
    (root / "removed" / "x").rename(root / "removed" / f"{digest}.parquet")
    changed(root, "knnstore.json", lambda value: value | {"removed": digest})
    with pytest.raises(CorruptStoreError, match="has a null"):
        search(root)
