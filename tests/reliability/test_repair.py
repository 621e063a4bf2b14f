"""What verify finds, repair makes again: byte for byte, or it says why not."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from faults.material import bytes_of, differences, run

from knnstore.datastore.manifest import load_manifest
from knnstore.verification.check import verify


@pytest.fixture
def store(here):
    return here / "books.knnstore"


def spoil(root, *names):
    """Overwrite the middle of each file by what no checksum expects."""
    for name in names:
        (path,) = root.glob(name)
        data = bytearray(path.read_bytes())
        middle = slice(len(data) // 3, len(data) // 3 + 9)
        data[middle] = bytes(byte ^ 0xA5 for byte in data[middle])
        path.write_bytes(data)


def repaired(here, made, *options):
    """Repair; what the command said, after the store has the bytes of the one that was copied (but for its history)."""
    code, told = run(here, "repair", *options)
    assert code == 0, told
    assert verify(here / "books.knnstore").intact
    changed = differences(bytes_of(here / "books.knnstore"), bytes_of(made / "books.knnstore"))
    assert [name for name in changed if not name.startswith(("log/", "knnstore.json"))] == []
    return told


CASES = {
    "one bit of JSON": ((), (), "one bit corrected"),
    "keys, from the index": (("segments/0000/keys/c/1/0",), (), "from the index's copy"),
    "values, from the index": (("segments/0000/values/c/0",), (), "from the index's copy"),
    "metadata of an array": (("segments/0000/keys/zarr.json",), (), "from the plan"),
    "metadata of the group": (("segments/0000/zarr.json",), (), "from the plan"),
    "scales and queries": (("segments/0000/key_scales/c/0", "segments/0000/queries/c/0/0"), (), "by the LM"),
    "a record of keys": (("segments/0000/commits/keys-000002.json",), (), "from the index's copy"),
    "the record of the layout": (("segments/0000/commits/layout.json",), (), "recorded again"),
    "documents": (("segments/0000/documents.parquet",), ("--corpus", "books/"), "from the corpus"),
    "held-out tokens and values": (
        ("segments/0000/heldout/c/0", "segments/0000/values/c/0"),
        ("--corpus", "books/"),
        "from the corpus",
    ),
    "lists": (("index/*/lists/0000/codes/c/1/0", "index/*/lists/0000/rows/c/0"), (), "damaged files repaired"),
    "offsets": (("index/*/lists/0000/offsets/c/0",), (), "damaged files repaired"),
    "quantisers": (("index/*/quantizer/centroids/c/0/0",), (), "damaged files repaired"),
    "the self-check": (("index/*/lists/0000/check.json",), (), "damaged files repaired"),
    "keys and lists at once": (("segments/0000/keys/c/0/0", "index/*/lists/0000/keys/c/0/0"), (), "by the LM"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_can_be_made_again_is_made_byte_for_byte(here, made, store, case):
    names, options, how = CASES[case]
    spoil(store, *names)
    if not names:
        for path in (store / "segments/0000/segment.json", store / "segments/0000/commits/keys-000001.json"):
            data = bytearray(path.read_bytes())
            data[40] ^= 4
            path.write_bytes(data)
    assert not verify(store).intact
    assert how in repaired(here, made, *options)


@pytest.mark.parametrize(
    ("names", "how"),
    [(("index/*/lists/0000/codes/c/1/0",), "from the index's copy"), (("index/*/lists/0000/rows/c/0",), "by the LM")],
)
def test_damaged_lists_of_dropped_keys_give_them_back_first(here, made, store, names, how):
    code, told = run(here, "index", "--drop-keys")
    assert (code, "dropped" in told) == (0, True), told
    assert verify(store).intact
    assert not (store / "segments/0000/keys").exists()
    spoil(store, *names)
    assert f"after the segment's keys {how}" in repaired(here, made)


def test_lists_with_the_last_copy_of_keys_that_could_not_be_written_stay_for_the_next_repair(
    here, made, store, monkeypatch
):
    spoil(store, "segments/0000/keys/c/1/0", "index/*/quantizer/codebooks/c/0/0/0")
    real, failed = os.fsync, []

    def fail_once(number):
        if not failed and "/keys/c/1/0" in str(Path(f"/proc/self/fd/{number}").readlink()):
            failed.append(number)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(number)

    monkeypatch.setattr(os, "fsync", fail_once)
    code, told = run(here, "repair")
    assert (code, len(failed)) == (1, 1), told
    assert "it would be built from segments/0000/keys/c/1/0, which couldn't be rebuilt" in told
    assert load_manifest(store).index is not None
    assert "keys/c/1/0 from the index's copy" in repaired(here, made)


def test_a_store_that_is_whole_is_left_alone(here, made):
    assert "nothing is damaged" in repaired(here, made)


def test_what_takes_the_corpus_says_so_and_ends_with_1(here, store):
    spoil(store, "segments/0000/heldout/c/0", "segments/0000/keys/c/0/0")
    code, told = run(here, "repair")
    assert code == 1
    assert "left      segments/0000/heldout/c/0" in told
    assert "with --corpus" in told
    assert {damage.path for damage in verify(store).damages} == {"segments/0000/heldout/c/0"}


def test_another_corpus_or_another_lm_is_refused(here, store, made):
    spoil(store, "segments/0000/heldout/c/0")
    (here / "other").mkdir()
    (here / "other" / "0.txt").write_text("another text")
    code, told = run(here, "repair", "--corpus", "other")
    assert (code, "aren't those that" in told) == (1, True)
    spoil(store, "segments/0000/key_scales/c/0")
    code, told = run(here, "repair", "--model", "wiki-lm", "--json", "--quiet")
    assert code == 1
    left = {damage["path"]: why for damage, why in json.loads(told)["left"]}
    assert "weights, config of" in left["segments/0000/key_scales/c/0"]


def test_a_plan_that_nothing_can_make_again_is_named(here, store):
    spoil(store, "segments/0000/segment.json")
    code, told = run(here, "repair")
    assert code == 1
    assert "left      segments/0000/segment.json" in told
    assert "restore it from a copy, or ingest the corpus again" in told


def test_keys_without_an_index_come_from_the_lm(here, made, store):
    shutil.rmtree(store / "index")
    from dataclasses import replace

    from knnstore.datastore.manifest import load_manifest, save_manifest

    save_manifest(store, replace(load_manifest(store), index=None, indexed=()))
    spoil(store, "segments/0000/keys/c/1/0")
    code, told = run(here, "repair")
    assert (code, "by the LM" in told) == (0, True), told
    expected = made / "books.knnstore/segments/0000/keys/c/1/0"
    assert (store / "segments/0000/keys/c/1/0").read_bytes() == expected.read_bytes()
