"""Filling: the kernel's choices are the reference's, rows are in one order, a cut through a list finds its place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.datastore.arrays import create_array, write_chunk, write_raw_chunks
from knnstore.index.cuts import cut_list
from knnstore.index.fill import list_order, shuffle_key
from knnstore.index.kernel import load_kernel
from knnstore.index.kmeans import two_level_kmeans
from knnstore.index.quantiser import Quantiser, train_codebooks

needs_kernel = pytest.mark.skipif(load_kernel() is None, reason="there is no C compiler")


def made_quantiser(keys, nlist, cells, pq_bytes):
    coarse, centroids = two_level_kmeans(
        lambda rows: keys[rows], len(keys), nlist, cells, seed=0, advance=lambda _: None
    )
    unfinished = Quantiser(coarse, centroids, np.empty((0, 0, 0), np.float32))
    lists = unfinished.assign_by_product(keys)
    return Quantiser(coarse, centroids, train_codebooks(keys - centroids[lists], pq_bytes, 0))


def clustered(rows, dimension, seed=0):
    generator = np.random.default_rng(seed)
    centres = 3 * generator.standard_normal((50, dimension), np.float32)
    return centres[generator.integers(50, size=rows)] + generator.standard_normal((rows, dimension), np.float32)


@needs_kernel
@pytest.mark.parametrize(
    ("dimension", "nlist", "cells", "pq_bytes"),
    [(64, 300, 17, 16), (64, 40, 6, 8), (6, 300, 17, 6), (100, 260, 16, 25), (24, 1, 1, 2), (256, 64, 8, 64)],
)
def test_the_kernel_chooses_the_lists_and_codes_of_the_reference(dimension, nlist, cells, pq_bytes):
    keys = clustered(3000, dimension)
    quantiser = made_quantiser(keys[:1500], nlist, cells, pq_bytes)
    assert quantiser.is_compiled
    lists = quantiser.assign_by_product(keys)
    np.testing.assert_array_equal(quantiser.assign(keys), lists)
    np.testing.assert_array_equal(quantiser.encode(keys, lists), quantiser.encode_by_faiss(keys, lists))


def test_of_no_keys_there_are_no_errors():
    """As of a short chunk of keys in list order, none of whose rows is one that is measured."""
    quantiser, none = made_quantiser(clustered(600, 16), 30, 6, 4), np.empty((0, 16), np.float32)
    lists = quantiser.assign(none)
    assert quantiser.errors(none, lists, quantiser.encode(none, lists)).shape == (0,)


@needs_kernel
@pytest.mark.parametrize("rows", [1, 5, 63, 65])
def test_a_few_keys_are_chosen_for_like_many(rows):
    keys = clustered(600, 16)
    quantiser = made_quantiser(keys, 300, 17, 4)
    lists = quantiser.assign(keys)
    np.testing.assert_array_equal(quantiser.assign(keys[:rows]), lists[:rows])
    np.testing.assert_array_equal(quantiser.encode(keys[:rows], lists[:rows]), quantiser.encode(keys, lists)[:rows])


@needs_kernel
def test_what_rounding_could_decide_is_left_to_the_reference():
    """Keys half way between two centroids, to the last bit or but for it, and between two code words."""
    centroids = np.array([[0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 8, 0]], np.float32)
    codebooks = np.zeros((2, 256, 2), np.float32)
    codebooks[:, :, 0] = np.arange(256)
    quantiser = Quantiser(centroids[:1], centroids, codebooks)
    half = np.array([[1, 0, 0, 0], [np.nextafter(np.float32(1), np.float32(2)), 0, 0, 0], [1, 0, 4, 0]], np.float32)
    assert quantiser._compiled is not None
    assert quantiser._compiled.assign(half, 4)[1].all()
    np.testing.assert_array_equal(quantiser.assign(half), quantiser.assign_by_product(half))
    middle = np.array([[0.5, 0, 3.5, 0]], np.float32)
    assert quantiser._compiled.encode(middle, np.array([0]))[1].all()
    far = np.array([[0.1, 0, 0.1, 0]], np.float32)
    assert not quantiser._compiled.assign(far, 4)[1].any()
    assert not quantiser._compiled.encode(far, np.array([0]))[1].any()


@needs_kernel
def test_keys_whose_cells_hold_no_list_get_one_all_the_same():
    """Centroids that all lie near the first of many cells: the others' keys have none to choose from."""
    generator = np.random.default_rng(0)
    cells = np.concatenate([np.zeros((1, 4)), 100 + generator.standard_normal((9, 4))]).astype(np.float32)
    centroids = generator.standard_normal((300, 4)).astype(np.float32)
    quantiser = Quantiser(cells, centroids, np.zeros((1, 256, 4), np.float32))
    keys = np.float32(100) + generator.standard_normal((50, 4)).astype(np.float32)
    np.testing.assert_array_equal(quantiser.assign(keys), quantiser.assign_by_product(keys))


def test_without_the_kernel_the_reference_stands_alone(monkeypatch):
    monkeypatch.setattr("knnstore.index.quantiser.load_kernel", lambda: None)
    keys = clustered(600, 16)
    quantiser = made_quantiser(keys, 300, 17, 4)
    assert not quantiser.is_compiled
    lists = quantiser.assign(keys)
    np.testing.assert_array_equal(quantiser.encode(keys, lists), quantiser.encode_by_faiss(keys, lists))


@given(st.data())
def test_rows_are_ordered_by_list_and_then_by_their_hash(data):
    count = data.draw(st.integers(0, 60))
    rows = np.array(data.draw(st.permutations(range(count))), np.uint32)
    lists = np.array(data.draw(st.lists(st.integers(5, 5 + 2**20), min_size=count, max_size=count)), np.int64)
    expected = np.lexsort((shuffle_key(rows.astype(np.uint64), 3), lists))
    np.testing.assert_array_equal(list_order(rows, lists, 3), expected)


def test_the_order_is_right_where_two_hashes_differ_in_their_last_bits_alone(monkeypatch):
    monkeypatch.setattr("knnstore.index.fill.shuffle_key", lambda rows, seed: 2**63 + rows)
    rows, lists = np.array([3, 1, 2, 0], np.uint32), np.array([70, 70, 0, 70])
    np.testing.assert_array_equal(list_order(rows, lists, 0), [2, 3, 1, 0])


@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=8),
    share=st.floats(0, 1),
    even=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_cut_leaves_so_many_of_the_smallest_hashes_before_it(lengths, share, even, seed):
    """Evenly spread hashes, as they are, and all small ones in one run, as they never are."""
    generator = np.random.default_rng(seed)
    hashes = np.unique(generator.integers(2**64, size=2 * sum(lengths) + 1, dtype=np.uint64))[: sum(lengths)]
    if even:
        generator.shuffle(hashes)
    ends = np.cumsum(lengths)
    runs = [np.sort(hashes[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    begins = generator.integers(50, size=len(lengths))
    rank = round(share * sum(lengths))
    cuts = cut_list(begins, begins + lengths, rank, lambda run, a, b: runs[run][a - begins[run] : b - begins[run]])
    before = [run[: cut - begin] for run, cut, begin in zip(runs, cuts, begins, strict=True)]
    np.testing.assert_array_equal(np.sort(np.concatenate(before)), np.sort(hashes)[:rank])


def test_of_a_long_list_a_cut_reads_a_few_rows():
    run = np.sort(np.random.default_rng(0).integers(2**64, size=2**20, dtype=np.uint64))
    read = []

    def hashes(_, begin, end):
        read.append(end - begin)
        return run[begin:end]

    assert cut_list(np.array([0]), np.array([len(run)]), 700_000, hashes).tolist() == [700_000]
    assert sum(read) < 20_000


@pytest.mark.parametrize("chunk", [0, 1])
def test_raw_chunks_are_the_bytes_that_zarr_writes(tmp_path, chunk):
    blocks = {"a": np.arange(40, dtype=np.int8).reshape(10, 4), "b": np.arange(10, dtype=np.uint32)}
    for name, whole in blocks.items():
        create_array(tmp_path / name, whole.shape, 6, whole.dtype, "none")
    part = slice(6 * chunk, 6 * chunk + 6)
    expected = {name: write_chunk(tmp_path / name, chunk, whole[part]).read_bytes() for name, whole in blocks.items()}
    files = write_raw_chunks(chunk, {tmp_path / name: whole[part] for name, whole in blocks.items()})
    assert [file.read_bytes() for file in files] == list(expected.values())
    with pytest.raises(ValueError, match="chunk 1 given"):
        write_raw_chunks(1, {tmp_path / "a": blocks["a"][:5]})
