"""What every engine promises: the same tests for the reference, the compiled kernel and a device (on CPU tensors)."""

import mmap

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knnstore.datastore.mapped import Pieces
from knnstore.files.local import LocalMap
from knnstore.indexes.compute.choice import host_engine
from knnstore.indexes.compute.coarse import CoarseLists
from knnstore.indexes.compute.device import DeviceEngine
from knnstore.indexes.compute.grouping import members_of_lists
from knnstore.indexes.compute.native import NativeEngine
from knnstore.indexes.compute.reference import ReferenceEngine, ReferenceFilling
from knnstore.indexes.compute.stored import Column, Probes, StoredLists, decode
from knnstore.indexes.ivfpq.kmeans import two_level_kmeans
from knnstore.indexes.ivfpq.quantiser import train_codebooks

quickly = settings(max_examples=25, deadline=None)


def engine_of(name):
    if name == "device":
        return DeviceEngine(torch.device("cpu"))
    if name == "reference":
        return ReferenceEngine()
    if not isinstance(host_engine(), NativeEngine):
        pytest.skip("there is no C compiler, or the kernel is switched off")
    return host_engine()


@pytest.fixture(params=["reference", "native", "device"], scope="module")
def joins(request):
    return engine_of(request.param)


@pytest.fixture(params=["reference", "native"], scope="module")
def engine(request):
    return engine_of(request.param)


def unlimited(queries):
    return np.full(queries, np.inf, np.float32)


def column_of(array):
    return Column.of_array(array, np.array([len(array)]))


def cut(array, generator):
    """Rows of an array in pieces of up to three maps."""
    counts = np.bincount(generator.integers(3, size=len(array)))
    counts = counts[counts > 0]
    columns = [column_of(part) for part in np.split(array, np.cumsum(counts)[:-1])]
    numbers, addresses = np.arange(len(columns)), np.concatenate([column.pieces.addresses for column in columns])
    maps = {number: column.pieces.maps[0] for number, column in enumerate(columns)}
    return Column(Pieces(numbers, numbers, 0 * numbers, counts, addresses, maps), array.dtype, array.shape[1:])


@quickly
@given(st.integers(0, 2**32), st.integers(1, 700), st.sampled_from([3, 1000]), st.tuples(st.booleans(), st.booleans()))
def test_the_k_nearest_below_the_threshold_are_kept_and_ties_go_to_the_first(joins, seed, k, distinct, kept):
    generator, queries = np.random.default_rng(seed), 5
    thresholds = np.full(queries, 20 if seed % 2 else np.inf, np.float32)
    values, tags = kept
    top_k = joins.top_k(thresholds, k, values=values, largest_tag=10**6 if tags else None)
    offered = [[] for _ in range(queries)]  # of each query: distance, value, tag
    for number in range(60):
        members = np.flatnonzero(generator.random(queries) < 0.7)
        count = int(generator.integers(1, 60))
        scores = generator.integers(-distinct, distinct, (len(members), count)).astype(np.float32) / 8
        offsets = generator.random(len(members), np.float32) * 3
        tokens, numbers = generator.integers(0, 2**16, count).astype(np.uint16), np.arange(count) + 1000 * number
        for query, row, offset in zip(members.tolist(), scores, offsets, strict=True):
            below = row < thresholds[query] - offset
            near = np.maximum(row + offset, 0)
            offered[query] += zip(near[below].tolist(), tokens[below].tolist(), numbers[below].tolist(), strict=True)
        top_k.offer(members, *map(torch.from_numpy, (scores, offsets)), (tokens, numbers))
    nearest = top_k.candidates()
    expected = [sorted(keys, key=lambda key: key[0])[:k] for keys in offered]
    np.testing.assert_array_equal(top_k.counts(), [len(keys) for keys in expected])
    rows = [keys + [(np.inf, -1, -1)] * (k - len(keys)) for keys in expected]
    for place, (column, is_kept) in enumerate(zip(nearest.columns, (True, *kept), strict=True)):
        assert (column is not None) == is_kept
        if is_kept:
            np.testing.assert_array_equal(column, np.array([[key[place] for key in row] for row in rows], column.dtype))


def made_lists(generator, dtype, centroids, sizes, first_tag):
    """Keys of one segment, of given sizes in ascending lists, and which of them are hidden."""
    numbers = np.sort(generator.integers(0, len(centroids), len(sizes)))
    units = generator.integers(-127, 128, (sum(sizes), centroids.shape[1]))
    scales = generator.uniform(0.01, 0.1, centroids.shape[1]).astype(np.float32) if dtype == np.int8 else None
    stored = units.astype(np.int8) if dtype == np.int8 else (units / 16).astype(dtype)
    arrays = stored, generator.integers(0, 9999, len(units), np.uint16), np.arange(len(units), dtype=np.uint32)
    hidden = generator.random(len(units)) < 0.2
    keys, values, tags, out = (Column.of_array(array, np.array(sizes)) for array in (*arrays, hidden))

    def residuals(rows, number):
        return torch.from_numpy(decode(rows, scales) - centroids[number])

    return StoredLists(numbers, keys, residuals, scales, values, tags, first_tag, out)


def laid_out(lists):
    """Float32 keys, lists, values and tags of all keys that aren't hidden."""
    pieces = range(len(lists.lists))
    keys, values, tags, hidden = (
        np.concatenate([column.rows(piece) for piece in pieces])
        for column in (lists.stored, lists.values, lists.tags, lists.hidden)
    )
    numbers = np.repeat(lists.lists, lists.stored.pieces.counts)
    return [array[~hidden] for array in (decode(keys, lists.scales), numbers, values, tags + lists.first_tag)]


@quickly
@given(
    st.integers(0, 2**32),
    st.sampled_from([np.int8, np.float16]),
    st.lists(st.lists(st.integers(1, 700), min_size=1, max_size=4), min_size=1, max_size=3),
    st.tuples(st.integers(1, 130), st.sampled_from([3, 60]), st.sampled_from([0.0, 30.0])),
)
def test_lists_are_offered_to_those_who_probe_them(joins, seed, dtype, segments, shape):
    """Every key that isn't hidden, to a ten-thousandth of its distance; int8 keys to the reference's bits."""
    generator, nlist, (dimension, queries, mean) = np.random.default_rng(seed), 3, shape
    centroids = (generator.normal(size=(nlist, dimension)) + mean).astype(np.float32)
    asked = (generator.normal(0, 3, (queries, dimension)) + mean).astype(np.float32)
    probed = np.argsort(generator.random((queries, nlist)))[:, :2]
    made = [made_lists(generator, dtype, centroids, sizes, 10_000 * n) for n, sizes in enumerate(segments)]
    keys, numbers, values, tags = map(np.concatenate, zip(*map(laid_out, made), strict=True))

    def found_by(engine, k):
        top_k = engine.top_k(unlimited(queries), k, largest_tag=10**6)
        probes = Probes(asked, centroids, *members_of_lists(probed, nlist))
        top_k.offer_lists(filter(None, (made[:2], made[2:])), probes)
        return top_k

    for k in (len(tags) + 1, 1 + len(tags) // 5) if dtype == np.int8 else ():
        pairs = zip(*(found_by(engine, k).candidates().columns for engine in (joins, ReferenceEngine())), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)
    top_k = found_by(joins, len(tags) + 1)
    nearest = top_k.candidates()
    squared = ((asked[:, None].astype(np.float64) - keys) ** 2).sum(-1)
    # the query's rounding, 2^-16 of its largest weight, times what keys differ from the centroid
    far = ((keys - centroids[numbers]) ** 2).sum(-1).max(initial=0) + ((asked[:, None] - centroids) ** 2).sum(-1).max()
    for query, count in enumerate(top_k.counts().tolist()):
        met = np.flatnonzero(np.isin(numbers, probed[query]))
        np.testing.assert_array_equal(np.sort(nearest.tags[query, :count]), tags[met])
        places = np.searchsorted(tags, nearest.tags[query, :count])
        np.testing.assert_array_equal(nearest.values[query, :count], values[places])
        distances = nearest.distances[query, :count]
        np.testing.assert_allclose(distances, squared[query, places], rtol=1e-4, atol=1e-4 * far)
        assert (np.diff(distances) >= 0).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([3, 1500]), st.lists(st.integers(1, 1500), min_size=1, max_size=5))
def test_many_lists_in_one_call_are_what_they_are_one_by_one(joins, seed, queries, sizes):
    """To the last bit, and whether hidden keys lie between the others or not."""
    generator, nlist, dimension = np.random.default_rng(seed), 3, 20
    centroids, asked = (generator.normal(size=(count, dimension)).astype(np.float32) for count in (nlist, queries))
    probes = Probes(asked, centroids, *members_of_lists(np.argsort(generator.random((queries, nlist)))[:, :2], nlist))
    lists = made_lists(generator, np.int8, centroids, sizes, 70)
    together, apart = (joins.top_k(unlimited(queries), 40, largest_tag=10**4) for _ in range(2))
    together.offer_lists([[lists]], probes)
    for piece in range(len(sizes)):
        kept = ~lists.hidden.rows(piece)
        if kept.any():
            keys, values, tags = (
                column_of(column.rows(piece)[kept]) for column in (lists.stored, lists.values, lists.tags)
            )
            number = lists.lists[piece : piece + 1]
            apart.offer_lists([[StoredLists(number, keys, lists.residuals, lists.scales, values, tags, 70)]], probes)
    for one, other in zip(together.candidates().columns, apart.candidates().columns, strict=True):
        np.testing.assert_array_equal(one, other)


def test_tags_beyond_32_bits_are_kept(joins):
    top_k = joins.top_k(unlimited(1), 2, largest_tag=2**40)
    tags = np.array([2**40, 2**33])
    top_k.offer(np.array([0]), torch.tensor([[2.0, 1.0]]), torch.zeros(1), (np.array([7, 8]), tags))
    assert top_k.candidates().tags.tolist() == [[2**33, 2**40]]


@quickly
@given(
    st.integers(0, 2**32),
    st.integers(1, 90),
    st.integers(1, 130) | st.sampled_from([512, 513, 1024, 1100]),  # where sums outgrow 32 bits and float32
    st.sampled_from([np.int8, np.float16]),
)
def test_a_query_is_measured_against_keys_in_pieces(engine, seed, rows, dimension, dtype):
    generator = np.random.default_rng(seed)
    stored = generator.integers(-100, 100, (rows, dimension)).astype(dtype)
    scales = generator.uniform(0.01, 0.1, dimension).astype(np.float32) if dtype == np.int8 else None
    query = generator.normal(size=dimension).astype(np.float32)
    column = cut(stored, generator)
    centroids = generator.normal(size=(len(column.pieces.counts), dimension)).astype(np.float32)
    squared = ((decode(stored, scales).astype(np.float64) - query) ** 2).sum(-1)
    distances = engine.squared_distances(query, column, scales, centroids)
    np.testing.assert_allclose(distances, squared, rtol=1e-5 if scales is None else 1e-4, atol=1e-3)
    if scales is not None:
        np.testing.assert_array_equal(distances, ReferenceEngine().squared_distances(query, column, scales, centroids))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3000), st.integers(1, 1200), st.sampled_from([2, 50, 10**6]))
def test_the_smallest_finite_distances_are_found_ties_in_order(engine, seed, count, k, distinct):
    generator = np.random.default_rng(seed)
    distances = (generator.integers(0, distinct, count) / 7).astype(np.float32)
    distances[generator.random(count) < 0.1] = np.inf
    expected = np.argsort(distances, kind="stable")[:k]
    np.testing.assert_array_equal(engine.smallest(distances, k), expected[np.isfinite(distances[expected])])


@quickly
@given(st.integers(0, 2**32), st.integers(1, 90), st.sampled_from([np.uint16, np.uint32, np.uint64]))
def test_numbers_are_taken_from_pieces(engine, seed, count, dtype):
    generator = np.random.default_rng(seed)
    numbers = generator.integers(0, 2**16, count).astype(dtype)
    column = cut(numbers, generator)
    places = generator.integers(0, count, 2 * count)
    np.testing.assert_array_equal(engine.take(column, places), numbers[places])


def test_mapped_memory_is_asked_for(engine, tmp_path):
    """Two pieces of a file, the last ending within a page."""
    path = tmp_path / "chunk"
    path.write_bytes(bytes(range(250)) * 1000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        starts, counts, zeros = np.array([20_000, 199_000]), np.array([180_000, 51_000]), np.zeros(2, np.int64)
        pieces = Pieces(np.arange(2), zeros, starts, counts, address + starts, {0: LocalMap(250_000, mapped)})
        engine.read_ahead(pieces, starts // 16_384 * 16_384, starts + counts)
        assert mapped[:] == path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 200)), min_size=1, max_size=6), st.data())
def test_the_first_block_with_a_changed_byte_is_damaged(engine, blocks, data):
    held = np.random.default_rng(0).integers(0, 256, 700, np.uint8)
    begins, sizes = (np.array(column) for column in zip(*blocks, strict=True))
    sums = np.array([google_crc32c.value(held[b : b + n].tobytes()) for b, n in blocks], np.uint32)
    assert engine.first_damaged(held, begins, sizes, sums) is None
    changed = data.draw(st.integers(0, len(blocks) - 1))
    place = int(begins[changed]) + data.draw(st.integers(0, int(sizes[changed]) - 1))
    held[place] ^= 1
    meeting = (begins <= place) & (place < begins + sizes)
    assert engine.first_damaged(held, begins, sizes, sums) == int(np.argmax(meeting))


def clustered(rows, dimension):
    generator = np.random.default_rng(0)
    centres = 3 * generator.standard_normal((50, dimension), np.float32)
    return centres[generator.integers(50, size=rows)] + generator.standard_normal((rows, dimension), np.float32)


def made_filling(keys, nlist, cells, pq_bytes):
    """Lists and codebooks, and who fills by the reference."""
    coarse = CoarseLists(
        *two_level_kmeans(lambda rows: keys[rows], len(keys), nlist, cells, seed=0, advance=lambda _: None)
    )
    codebooks = train_codebooks(keys - coarse.centroids[coarse.assign(keys)], pq_bytes, 0)
    return coarse, codebooks, ReferenceFilling(coarse, codebooks, None)


@pytest.mark.parametrize(
    ("dimension", "nlist", "cells", "pq_bytes"),
    [(64, 300, 17, 16), (64, 40, 6, 8), (6, 300, 17, 6), (100, 260, 16, 25), (24, 1, 1, 2), (256, 64, 8, 64)],
)
def test_lists_and_codes_are_the_very_ones_of_the_reference(engine, dimension, nlist, cells, pq_bytes):
    keys = clustered(3000, dimension)
    coarse, codebooks, reference = made_filling(keys[:1500], nlist, cells, pq_bytes)
    filling, lists = engine.filling(coarse, codebooks, None), reference.assign(keys)
    np.testing.assert_array_equal(filling.assign(keys), lists)
    np.testing.assert_array_equal(filling.encode(keys, lists), reference.encode(keys, lists))


def test_codes_along_other_axes_are_those_of_the_reference(engine):
    keys = clustered(600, 16)
    axes = np.ascontiguousarray(np.linalg.qr(clustered(16, 16))[0][:, :8])
    coarse, codebooks, _ = made_filling(keys @ axes, 30, 6, 4)
    coarse = CoarseLists(keys[:6], keys[:30])
    lists = coarse.assign(keys)
    expected = ReferenceFilling(coarse, codebooks, axes).encode(keys, lists)
    np.testing.assert_array_equal(engine.filling(coarse, codebooks, axes).encode(keys, lists), expected)


@pytest.mark.parametrize("rows", [1, 5, 63, 65])
def test_a_few_keys_are_chosen_for_like_many(engine, rows):
    keys = clustered(600, 16)
    coarse, codebooks, _ = made_filling(keys, 300, 17, 4)
    filling = engine.filling(coarse, codebooks, None)
    lists = filling.assign(keys)
    np.testing.assert_array_equal(filling.assign(keys[:rows]), lists[:rows])
    np.testing.assert_array_equal(filling.encode(keys[:rows], lists[:rows]), filling.encode(keys, lists)[:rows])


def test_what_rounding_could_decide_is_decided_by_the_reference():
    """Keys half way between two centroids, to the last bit or but for it, and between two code words."""
    native = engine_of("native")
    centroids = np.array([[0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 8, 0]], np.float32)
    codebooks = np.zeros((2, 256, 2), np.float32)
    codebooks[:, :, 0] = np.arange(256)
    coarse = CoarseLists(centroids[:1], centroids)
    filling = native.filling(coarse, codebooks, None)
    half = np.array([[1, 0, 0, 0], [np.nextafter(np.float32(1), np.float32(2)), 0, 0, 0], [1, 0, 4, 0]], np.float32)
    assert filling.nearest_lists(half)[1].all()
    np.testing.assert_array_equal(filling.assign(half), coarse.assign(half))
    middle = np.array([[0.5, 0, 3.5, 0]], np.float32)
    assert filling.nearest_codes(middle, np.array([0]))[1].all()
    far = np.array([[0.1, 0, 0.1, 0]], np.float32)
    assert not filling.nearest_lists(far)[1].any()
    assert not filling.nearest_codes(far, np.array([0]))[1].any()


def test_keys_whose_cells_hold_no_list_get_one_all_the_same(engine):
    """Centroids that all lie near the first of many cells: the others' keys have none to choose from."""
    generator = np.random.default_rng(0)
    cells = np.concatenate([np.zeros((1, 4)), 100 + generator.standard_normal((9, 4))]).astype(np.float32)
    coarse = CoarseLists(cells, generator.standard_normal((300, 4)).astype(np.float32))
    keys = np.float32(100) + generator.standard_normal((50, 4)).astype(np.float32)
    filling = engine.filling(coarse, np.zeros((1, 256, 4), np.float32), None)
    np.testing.assert_array_equal(filling.assign(keys), coarse.assign(keys))


@pytest.mark.parametrize("probed", [1, 40, 100])
def test_any_number_of_cells_can_be_chosen_from(engine, monkeypatch, probed):
    for module in ("coarse", "native_filling"):
        monkeypatch.setattr(f"knnstore.indexes.compute.{module}.ASSIGN_CELLS", probed)
    keys = clustered(1500, 8)
    coarse = CoarseLists(keys[:120], keys[200:600])
    filling = engine.filling(coarse, np.zeros((1, 256, 8), np.float32), None)
    np.testing.assert_array_equal(filling.assign(keys), coarse.assign(keys))
