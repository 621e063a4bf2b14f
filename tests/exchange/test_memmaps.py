"""Two files of raw numbers: what form they have is found out from names, sizes and contents, or asked for."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.errors import CorpusError, UsageError
from knnstore.exchange.memmaps import open_memmaps
from knnstore.exchange.rawfile import Form, RawArray

ROWS, WIDTH = 300, 16
HALF = Form(WIDTH, key_type="float16")


def written(folder, keys="float16", values="int32", name="dstore"):
    """A pair of memmaps as the toolkits write them; their paths and contents."""
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(ROWS, WIDTH)).astype(keys), rng.integers(0, 9000, (ROWS, 1)).astype(values)
    paths = [folder / f"{name}_keys.npy", folder / f"{name}_vals.npy"]
    for path, array in zip(paths, arrays, strict=True):
        array.tofile(path)
    return paths, arrays


@pytest.mark.parametrize("values", ["int16", "int32", "int64"])
@pytest.mark.parametrize("keys", ["float16", "float32"])
def test_the_types_of_raw_files_follow_from_their_sizes_and_the_type_of_a_key(tmp_path, keys, values):
    paths, arrays = written(tmp_path, keys, values)
    found = open_memmaps(*paths, Form(WIDTH, key_type=keys))
    assert (found.keys.dtype, found.values.dtype, found.rows) == (keys, values, ROWS)
    np.testing.assert_array_equal(found.keys.read(7, 99), arrays[0][7:99])
    np.testing.assert_array_equal(found.values.read(7, 99), arrays[1][7:99])


def test_where_the_sizes_leave_a_choice_of_types_the_user_is_asked(tmp_path):
    paths, _ = written(tmp_path, "float16", "int32")
    choice = f"{ROWS} rows of {WIDTH} float16 with int32 values.* {ROWS // 2} rows of {WIDTH} float32 with int64 values"
    with pytest.raises(UsageError, match="give key_type=") as refused:
        open_memmaps(*paths, Form(WIDTH))
    assert all(re.search(part, str(refused.value)) for part in choice.split(".* "))


def test_knn_transformers_names_say_rows_and_width(tmp_path):
    paths, _ = written(tmp_path, name=f"dstore_gpt2_{ROWS}_{WIDTH}")
    assert open_memmaps(*paths, Form()).rows == ROWS


def test_knn_box_files_are_described_beside_them_and_may_be_longer(tmp_path):
    (keys, values), _ = written(tmp_path)
    keys, values = keys.rename(tmp_path / "keys.npy"), values.rename(tmp_path / "vals.npy")
    about = {"keys": {"shape": [200, WIDTH], "dtype": "float16"}, "vals": {"shape": [200], "dtype": "int32"}}
    (tmp_path / "config.json").write_text(json.dumps({"data_infos": about}))
    found = open_memmaps(keys, values, Form())
    assert (found.rows, found.keys.dtype, found.values.dtype) == (200, "float16", "int32")


def test_another_kind_of_config_beside_the_files_is_passed_over(tmp_path):
    paths, _ = written(tmp_path)
    for text in ("{", "[]", '{"data_infos": {"dstore_keys": {"shape": "x"}}}', "{}"):
        (tmp_path / "config.json").write_text(text)
        assert open_memmaps(*paths, HALF).rows == ROWS


def test_files_that_numpy_saved_say_their_form_themselves(tmp_path):
    _, arrays = written(tmp_path)
    paths = tmp_path / "k.npy", tmp_path / "v.npy"
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    found = open_memmaps(*paths, Form())
    np.testing.assert_array_equal(found.keys.read(0, ROWS), arrays[0])
    np.testing.assert_array_equal(found.values.read(3, 5), arrays[1][3:5])
    assert open_memmaps(*paths, Form(rows=9)).rows == 9
    with pytest.raises(CorpusError, match="omit the option"):
        open_memmaps(*paths, Form(WIDTH + 1))
    with pytest.raises(CorpusError, match="lower rows="):
        open_memmaps(*paths, Form(rows=ROWS + 1))


def test_pickled_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was loaded",))

    np.save(tmp_path / "k.npy", np.zeros((3, 4), np.float16))
    np.save(tmp_path / "v.npy", np.array([Trap(), Trap(), Trap()], object), allow_pickle=True)
    with pytest.raises(CorpusError, match="never loaded"):
        open_memmaps(tmp_path / "k.npy", tmp_path / "v.npy", Form())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda k, v: k.write_bytes(k.read_bytes()[:-2]), "don't hold the same number of rows"),
        (lambda k, v: v.write_bytes(v.read_bytes()[:-4]), "don't hold the same number of rows"),
        (lambda k, v: k.write_bytes(b""), "don't hold the same number of rows"),
        (lambda k, v: v.unlink(), "no such file"),
        (lambda k, v: k.write_bytes(bytes(ROWS * WIDTH * 2)), "every key is zero"),
        (lambda k, v: k.write_bytes(k.read_bytes()[: 200 * WIDTH * 2] + bytes(100 * WIDTH * 2)), "rows=200"),
        (lambda k, v: np.save(v, np.zeros(ROWS, np.int32)), "aren't a pair"),
        (lambda k, v: k.write_bytes(b"\x93NUMPY\x01\x00rubbish"), "header can't be read"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_what_they_hold(tmp_path, spoil, told):
    (keys, values), _ = written(tmp_path, "float16", "int32")
    spoil(keys, values)
    with pytest.raises(CorpusError, match=told):
        open_memmaps(keys, values, HALF)


def test_a_width_that_cannot_be_known_has_to_be_given(tmp_path):
    paths, _ = written(tmp_path)
    with pytest.raises(UsageError, match="dim="):
        open_memmaps(*paths, Form())
    with pytest.raises(CorpusError, match="rows of 17 float16"):
        open_memmaps(*paths, Form(17))
    with pytest.raises(UsageError, match="give the two files"):
        open_memmaps(paths[0], paths[0], Form(WIDTH))
    with pytest.raises(UsageError, match="rows=0"):
        Form(rows=0)


def test_files_longer_than_what_was_written_need_the_number_of_rows(tmp_path):
    paths, arrays = written(tmp_path, "float16", "int16")
    with paths[1].open("ab") as file:
        file.write(bytes(4000))
    with pytest.raises(CorpusError, match="give rows="):
        open_memmaps(*paths, HALF)
    found = open_memmaps(*paths, Form(WIDTH, ROWS, "float16", "int16"))
    np.testing.assert_array_equal(found.values.read(0, ROWS), arrays[1])


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    (keys, values), _ = written(tmp_path)
    found = open_memmaps(keys, values, HALF)
    keys.write_bytes(keys.read_bytes()[:100])
    with pytest.raises(CorpusError, match="has changed"):
        found.keys.read(0, ROWS)


@given(st.integers(1, 40), st.integers(1, 8), st.data())
def test_any_range_of_rows_is_what_was_written(tmp_path_factory, rows, width, data):
    array = np.arange(rows * width, dtype="<f4").reshape(rows, width)
    path = tmp_path_factory.mktemp("raw") / "keys"
    array.tofile(path)
    begin = data.draw(st.integers(0, rows))
    end = data.draw(st.integers(begin, rows))
    np.testing.assert_array_equal(RawArray(path, "float32", rows, width).read(begin, end), array[begin:end])
