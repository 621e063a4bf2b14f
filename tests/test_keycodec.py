"""Stored keys: float16, or int8 with an error of half a unit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from knnstore.datastore.keycodec import KeyCodec, scales_of
from knnstore.errors import NumericsError, UsageError

keys = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.integers(1, 8)),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)


@given(keys)
def test_int8_is_off_by_half_a_unit_at_most(sample):
    scales = scales_of(sample)
    codec = KeyCodec("int8", scales)
    stored = codec.encode(sample)
    assert stored.dtype == codec.stored == np.int8
    assert (np.abs(codec.decode(stored) - sample) <= scales * 0.5001).all()


@given(keys)
def test_float16_is_off_by_what_it_can_tell_apart(sample):
    codec = KeyCodec("float16")
    decoded = codec.decode(codec.encode(sample))
    assert decoded.dtype == np.float32
    assert (np.abs(decoded - sample) <= np.maximum(np.abs(sample) * 2**-11, 2**-25)).all()


def test_a_key_a_quarter_beyond_the_sample_is_not_clipped_and_one_far_beyond_is_held_at_the_edge():
    codec = KeyCodec("int8", scales_of(np.array([[1.0]], np.float32)))
    assert codec.decode(codec.encode(np.array([[1.24], [-9]], np.float32))).ravel() == pytest.approx(
        [1.24, -1.25], 0.01
    )


def test_a_dimension_that_is_always_zero_comes_back_as_zero():
    sample = np.zeros((3, 2), np.float32)
    codec = KeyCodec("int8", scales_of(sample))
    assert not codec.decode(codec.encode(sample)).any()


@pytest.mark.parametrize("dtype", ["int8", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_no_number_is_named_by_row(dtype, bad):
    sample = np.ones((5, 3), np.float32)
    codec = KeyCodec(dtype, scales_of(sample) if dtype == "int8" else None)
    sample[3, 1] = bad
    with pytest.raises(NumericsError, match=f"key 3 has an activation of .* which {dtype} can't hold"):
        codec.encode(sample)


def test_an_activation_too_large_for_float16_is_refused_and_int8_takes_it():
    sample = np.array([[1.0], [70000.0]], np.float32)
    with pytest.raises(NumericsError, match="key 1 has an activation of 70000"):
        KeyCodec("float16").encode(sample)
    codec = KeyCodec("int8", scales_of(sample))
    assert codec.decode(codec.encode(sample))[1] == pytest.approx(70000, 0.01)


def test_no_keys_are_no_error():
    assert KeyCodec("float16").encode(np.empty((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize(("dtype", "scales"), [("int4", None), ("int8", None), ("float16", np.ones(3, np.float32))])
def test_a_codec_that_makes_no_sense_is_refused(dtype, scales):
    with pytest.raises(UsageError, match=f"key dtype '?{dtype}"):
        KeyCodec(dtype, scales)
