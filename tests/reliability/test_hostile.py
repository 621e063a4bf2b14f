"""A store from a stranger: errors of ours at worst, nothing read outside of it, nothing allocated on its word."""

import os

import numpy as np
import pytest
from faults.material import run

from knnstore.atomic import write_json
from knnstore.datastore.arrays import create_array, read_rows, write_chunk
from knnstore.datastore.documents import Document
from knnstore.datastore.locking import LOCK_FILE, writing
from knnstore.datastore.manifest import load_json
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError


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
    with pytest.raises(CorruptStoreError, match=r"it holds 100000000 bytes, not 30|don't have the checksum"):
        read_rows(tmp_path / "g" / "a", 0, 10)


def test_names_from_a_store_do_not_move_the_cursor_of_a_terminal():
    assert str(Document("a\x1b[2J.txt", 3, None)) == r"a\x1b[2J.txt#3"
    assert str(Document("é – 書.txt", None, "x")) == "é – 書.txt#x"
