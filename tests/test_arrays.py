"""Zarr arrays: what is written comes back, and what is damaged never comes back as zeros."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.datastore.arrays import chunk_file, create_array, open_array, read_rows, write_chunk
from knnstore.datastore.mapped import MappedArray
from knnstore.errors import CorruptStoreError

ROWS, CHUNK, WIDTH = 25, 10, 3
DATA = np.random.default_rng(0).integers(1, 100, (ROWS, WIDTH)).astype(np.int8)


def write(path, data=DATA, chunk=CHUNK, compression="none"):
    create_array(path, data.shape, chunk, data.dtype, compression)
    return [write_chunk(path, i, data[i * chunk : (i + 1) * chunk]) for i in range(-(-len(data) // chunk))]


READERS = {"zarr": read_rows, "mapped": lambda path, begin, end: MappedArray(path).rows(begin, end)}


@pytest.mark.parametrize("compression", ["none", "values", "keys"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "float16", "float32", "int8", "int64"])
def test_rows_come_back_whatever_the_dtype_and_compression(tmp_path, dtype, compression):
    data = DATA.astype(dtype)
    write(tmp_path / "a", data, compression=compression)
    back = read_rows(tmp_path / "a", 0, ROWS)
    assert back.dtype == data.dtype
    np.testing.assert_array_equal(back, data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "a"
    write(path)
    return path


@given(st.integers(0, ROWS), st.integers(0, ROWS), st.sampled_from(sorted(READERS)))
def test_every_range_of_rows_is_read_as_it_was_written(written, one, other, reader):
    begin, end = sorted((one, other))
    np.testing.assert_array_equal(READERS[reader](written, begin, end), DATA[begin:end])


@given(st.lists(st.integers(0, ROWS - 1), max_size=20))
def test_scattered_rows_are_taken_in_the_order_asked_for(written, rows):
    np.testing.assert_array_equal(MappedArray(written).take(np.array(rows, np.int64)), DATA[rows])


@pytest.mark.parametrize("reader", sorted(READERS))
@pytest.mark.parametrize("bounds", [(-1, 3), (5, 4), (0, ROWS + 1)])
def test_rows_beyond_the_array_are_an_error(written, reader, bounds):
    with pytest.raises(IndexError, match=f"of {ROWS}"):
        READERS[reader](written, *bounds)


@pytest.mark.parametrize("reader", sorted(READERS))
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "long"])
def test_a_missing_or_cut_chunk_is_damage_and_never_zeros(tmp_path, reader, damage):
    _, file, _ = write(tmp_path / "a")
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "short": whole[:-1], "long": whole + b"x"}[damage])
    with pytest.raises(CorruptStoreError, match="/a"):
        READERS[reader](tmp_path / "a", 5, 25)
    np.testing.assert_array_equal(READERS[reader](tmp_path / "a", 0, CHUNK), DATA[:CHUNK])


@pytest.mark.parametrize(("reader", "compression"), [("zarr", "none"), ("zarr", "keys"), ("mapped", "none")])
def test_any_flipped_bit_is_noticed(tmp_path, reader, compression):
    file = write(tmp_path / "a", compression=compression)[1]
    whole = file.read_bytes()
    for byte in range(len(whole)):
        file.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1 << byte % 8]) + whole[byte + 1 :])
        with pytest.raises(CorruptStoreError, match="/a"):
            READERS[reader](tmp_path / "a", CHUNK, 2 * CHUNK)


def test_a_chunk_of_nothing_but_zeros_is_a_file_all_the_same(tmp_path):
    files = write(tmp_path / "a", np.zeros((ROWS, WIDTH), np.int8), compression="keys")
    assert all(file.stat().st_size for file in files)
    assert not read_rows(tmp_path / "a", 0, ROWS).any()


def test_a_chunk_written_twice_has_the_same_bytes(tmp_path):
    file = write(tmp_path / "a", compression="keys")[0]
    before = file.read_bytes()
    write_chunk(tmp_path / "a", 0, DATA[:CHUNK])
    assert file.read_bytes() == before


@pytest.mark.parametrize("rows", [0, 9, 11])
def test_only_whole_chunks_are_written(tmp_path, rows):
    write(tmp_path / "a")
    with pytest.raises(ValueError, match=f"chunk 1 given {rows} rows"):
        write_chunk(tmp_path / "a", 1, DATA[:rows])


def test_making_an_array_again_keeps_its_chunks_unless_its_form_is_another(tmp_path):
    write(tmp_path / "a")
    create_array(tmp_path / "a", DATA.shape, CHUNK, DATA.dtype, "none")
    np.testing.assert_array_equal(read_rows(tmp_path / "a", 0, ROWS), DATA)
    create_array(tmp_path / "a", DATA.shape, CHUNK + 1, DATA.dtype, "none")
    with pytest.raises(CorruptStoreError, match="missing"):
        read_rows(tmp_path / "a", 0, ROWS)


def test_no_array_is_one_sentence(tmp_path):
    with pytest.raises(CorruptStoreError, match=r"none/zarr\.json is damaged, or isn't JSON: .*No such file"):
        open_array(tmp_path / "none")


def test_garbled_metadata_is_one_sentence(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a" / "zarr.json").write_text("{")
    with pytest.raises(CorruptStoreError, match=r"a/zarr\.json is damaged, or isn't JSON"):
        read_rows(tmp_path / "a", 0, 1)


def test_a_compressed_array_is_not_mapped(tmp_path):
    write(tmp_path / "a", compression="keys")
    with pytest.raises(CorruptStoreError, match="isn't an uncompressed array"):
        MappedArray(tmp_path / "a")


def test_a_mapped_chunk_is_the_raw_rows_and_four_bytes_of_checksum(tmp_path):
    write(tmp_path / "a")
    assert chunk_file(tmp_path / "a", 0, 2).read_bytes()[:-4] == DATA[:CHUNK].tobytes()
