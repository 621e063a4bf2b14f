"""Merging stores, and taking parts of them, without the LM."""

import hashlib

import numpy as np
import pytest
from index_stores import clustered_keys, make_store, stored_keys
from killing import DyingRunner, killed_at

from knnstore.datastore.history import changes
from knnstore.datastore.selection import matching, others, parse_share, sampled
from knnstore.datastore.store import Datastore
from knnstore.datastore.takedowns import load_takedowns
from knnstore.errors import MismatchError, UsageError
from knnstore.indexes.exact import exact_search
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.deriving import merge, subset
from knnstore.living.remove import remove
from knnstore.scheduling import Job

KEYS = clustered_keys(2040, 8)


def digest(text):
    return hashlib.sha256(text.encode()).digest()


@pytest.fixture
def stores(tmp_path):
    """Two stores of 1000 keys in ten documents each; the second has the first's fourth document as its first."""
    texts = [[digest(f"{store} {number}") for number in range(10)] for store in "ab"]
    texts[1][0] = texts[0][3]
    return [
        make_store(
            tmp_path / f"{name}.knnstore",
            [KEYS[first : first + 1000]],
            document_rows=100,
            chunk_rows=256,
            queries=KEYS[2000:2020] if name == "a" else KEYS[2020:],
            key_dtype="int8",
            digests=digests,
        )
        for name, first, digests in zip("ab", (0, 1000), texts, strict=True)
    ]


def test_a_merged_store_has_every_text_once(stores, tmp_path):
    report = merge(stores, tmp_path / "c.knnstore", Job())
    merged = Datastore(report.store)
    assert (report.rows, report.doubles, report.heldout_documents, report.heldout_tokens) == (1900, 1, 2, 40)
    keys = np.concatenate([stored_keys(stores[0])[0], stored_keys(stores[1])[0][100:]])
    units = merged.segments[0].codec.scales
    np.testing.assert_array_equal(units, np.maximum(*(store.segments[0].codec.scales for store in stores)))
    assert (np.abs(stored_keys(merged)[0] - keys) <= units * 0.501).all()
    assert len(merged.segments[0].queries()) == 40
    assert [change.kind for change in changes(report.store)] == ["merge"]
    assert exact_search(merged, KEYS[2000:], 5).found.all()
    again = merge(stores, tmp_path / "c.knnstore", Job(DyingRunner(0)))
    assert again == report


def test_stores_of_other_keys_do_not_merge(stores, tmp_path):
    other = make_store(tmp_path / "d", [KEYS[:100]], key_dtype="float16")
    with pytest.raises(MismatchError, match="key_dtype float16, not int8"):
        merge([stores[0], other], tmp_path / "c.knnstore", Job())
    wider = make_store(tmp_path / "e", [clustered_keys(100, 16)], key_dtype="int8")
    with pytest.raises(MismatchError, match=r"can't join .*: key "):
        merge([stores[0], wider], tmp_path / "c.knnstore", Job())
    with pytest.raises(UsageError, match="at least two stores"):
        merge(stores[:1], tmp_path / "c.knnstore", Job())
    with pytest.raises(UsageError, match="one of the stores to be read"):
        merge(stores, stores[0].root, Job(), overwrite=True)
    assert not (tmp_path / "c.knnstore").exists()


def test_what_one_store_took_down_does_not_come_back_from_another(stores, tmp_path):
    remove(stores[0].root, ["300.txt"])  # the text that both have
    opened = [Datastore(store.root) for store in stores]
    report = merge(opened, tmp_path / "c.knnstore", Job())
    assert (report.rows, report.doubles) == (1800, 0)
    assert load_takedowns(report.store).tolist() == load_takedowns(stores[0].root).tolist() != []
    part = subset(Datastore(stores[0].root), tmp_path / "d.knnstore", Job(), share=1.0)
    assert load_takedowns(part.store).tolist() == load_takedowns(stores[0].root).tolist()


def test_a_killed_merge_goes_on_and_ends_with_the_same_bytes(stores, tmp_path, bytes_of):
    every = DyingRunner()
    merge(stores, tmp_path / "whole.knnstore", Job(every))
    ran = killed_at([0, 2, 5], lambda runner: merge(stores, tmp_path / "c.knnstore", Job(runner)))
    assert ran == sorted(every.ran)
    assert bytes_of(tmp_path / "c.knnstore") == bytes_of(tmp_path / "whole.knnstore")


def test_smaller_samples_lie_within_larger_ones(stores, tmp_path):
    store = stores[0]
    chosen = [set(sampled(store, share)["0000"].tolist()) for share in (0.001, 0.2, 0.5, 1.0)]
    assert [len(some) for some in chosen] == [1, 2, 5, 10]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    report = subset(store, tmp_path / "half.knnstore", Job(), share=0.5)
    assert (report.rows, report.heldout_tokens) == (500, 20)
    half = Datastore(report.store)
    documents = sorted(chosen[2])
    expected = np.concatenate([stored_keys(store)[0][100 * n : 100 * n + 100] for n in documents])
    np.testing.assert_array_equal(stored_keys(half)[0], expected)


def test_a_mask_finds_what_the_subset_finds(stores, tmp_path):
    store = stores[0]
    part = Datastore(subset(store, tmp_path / "p.knnstore", Job(), documents=["?00.txt"]).store)
    assert part.rows == 900  # all but 0.txt
    masked = store.masked(others(store, matching(store, ["?00.txt"], "only")))
    assert masked.live_rows == 900
    found = [exact_search(one, KEYS[2000:], 30) for one in (part, masked)]
    np.testing.assert_array_equal(found[0].values, found[1].values)
    assert len(part.segments[0].documents.heldout()) == 0  # which the pattern doesn't name
    with pytest.raises(UsageError, match=r"documents='nothing' matches no document .* it has 0\.txt"):
        subset(store, tmp_path / "q.knnstore", Job(), documents=["nothing"])


def test_a_subset_of_a_store_with_removed_documents_has_none_of_them(stores, tmp_path):
    remove(stores[1].root, ["900.txt"])
    report = subset(Datastore(stores[1].root), tmp_path / "p.knnstore", Job(), share=1.0)
    assert report.rows == 900
    assert b"900.txt" not in (report.store / "segments" / "0000" / "documents.parquet").read_bytes()
    compact(stores[1].root, CompactOptions(), Job())


@pytest.mark.parametrize("text", ["0%", "101%", "10", "ten%", "-5%"])
def test_a_share_that_is_none_is_refused(text):
    assert parse_share("12.5 %", "sample") == 0.125
    with pytest.raises(UsageError, match="more than 0% and at most 100%"):
        parse_share(text, "sample")
