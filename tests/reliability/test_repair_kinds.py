"""Repair ends on an index of every kind, however it came about, and goes on where another repair was killed."""

import shutil

import numpy as np
import pytest
from faults.kinds import make_kinds
from faults.material import bytes_of, copy_of, differences, run, spoil
from faults.repairs import neighbours, repair_one

import knnstore.indexing.job
import knnstore.recovery.job
from knnstore.datastore.manifest import load_manifest
from knnstore.errors import CorruptStoreError
from knnstore.indexes.ivfpq.cuts import cut_list
from knnstore.verification.check import verify

KINDS = ("recentred", "subset", "merged", "dropped and compacted", "rotated and recentred")
"""Those whose lists keep members that an assignment from the keys would not give them."""


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    """Stores of these kinds, by kind. Read only."""
    return make_kinds(tmp_path_factory.mktemp("kinds") / "all", KINDS)


@pytest.fixture
def store_of(kinds, tmp_path):
    """``store_of(kind)``: a copy, to be damaged."""

    def copied(kind):
        shutil.copytree(kinds[kind].parent, tmp_path / "here", symlinks=True)
        return tmp_path / "here" / kinds[kind].name

    return copied


@pytest.mark.parametrize("name", ["lists/*/codes/c/1/0", "lists/*/offsets/c/0", "quantizer/codebooks/c/0/0/0"])
@pytest.mark.parametrize("kind", KINDS)
def test_repair_ends_on_lists_that_were_carried_over_and_all_keys_are_found_again(kinds, store_of, kind, name):
    store = store_of(kind)
    (path,) = store.glob(f"index/*/{name}")
    assert repair_one(store, path.relative_to(store).as_posix(), neighbours(kinds[kind])) == ("repaired", "")


@pytest.mark.parametrize(("name", "how"), [("query_tokens/c/0", "repaired"), ("key_scales/c/0", "left")])
@pytest.mark.parametrize("kind", ["recentred", "dropped and compacted"])
def test_scales_that_the_lm_did_not_make_are_never_replaced_by_its_own(kinds, store_of, kind, name, how):
    store = store_of(kind)
    (path,) = store.glob(f"segments/*/{name}")
    before = {path: path.read_bytes() for path in store.glob("segments/*/key_scales/c/0")}
    assert repair_one(store, path.relative_to(store).as_posix(), neighbours(kinds[kind])) == (how, "")
    if how == "repaired":
        assert {path: path.read_bytes() for path in before} == before


class Killed(BaseException):
    """What no command handles."""


def killed(*_, **__):
    raise Killed


def kill_repair(monkeypatch, store, function):
    """Repair until the first call of a function of the job."""
    with monkeypatch.context() as patch:
        patch.setattr(knnstore.recovery.job, function, killed)
        with pytest.raises(Killed):
            run(store.parent, "repair", "--store", str(store))


@pytest.mark.parametrize("function", ["remove_tree", "build_index"])
@pytest.mark.parametrize("command", ["repair", "index"])
@pytest.mark.parametrize("names", [("quantizer/codebooks/c/0/0/0", "lists/*/codes/c/1/0"), ("lists/*/codes/c/1/0",)])
def test_after_a_killed_repair_nothing_damaged_is_published(monkeypatch, store_of, command, function, names):
    store = store_of("recentred")
    for name in names:
        spoil(next(store.glob(f"index/*/{name}")))
    kill_repair(monkeypatch, store, function)
    report = verify(store)
    assert report.intact  # what was taken out of the store is a leftover
    assert (len(report.leftovers) > 0) == (function == "remove_tree")
    code, told = run(store.parent, command, "--store", str(store))
    assert code == 0, told
    assert verify(store).intact
    assert load_manifest(store).indexed == load_manifest(store).segments
    assert len(neighbours(store)) == 4


def test_a_repair_that_was_killed_goes_on_with_the_settings_of_the_index(monkeypatch, store_of):
    store = store_of("rotated and recentred")
    spoil(next(store.glob("index/*/quantizer/codebooks/c/0/0/0")))
    kill_repair(monkeypatch, store, "build_index")
    code, told = run(store.parent, "repair", "--store", str(store))
    assert (code, "an earlier repair was interrupted: the index is built again" in told) == (0, True)
    (plan,) = store.glob("index/*/index.json")
    assert '"rotation": "OPQ"' in plan.read_text()
    assert '"nlist": 8' in plan.read_text()
    code, told = run(store.parent, "repair", "--store", str(store))
    assert (code, "nothing is damaged" in told) == (0, True)


def test_a_killed_repair_of_the_exact_match_memory_goes_on(monkeypatch, lived, tmp_path):
    here = copy_of(lived, tmp_path / "here")
    store = here / "books.knnstore"
    spoil(next(store.glob("suffixes/*/order/c/0")))
    kill_repair(monkeypatch, store, "build_suffixes")
    code, told = run(here, "repair")
    assert code == 0, told
    assert differences(bytes_of(store), bytes_of(lived / "books.knnstore")) == []


def test_a_repair_that_was_killed_while_it_cleaned_up_leaves_nothing_to_the_next(monkeypatch, here, made):
    store = here / "books.knnstore"
    spoil(next(store.glob("index/*/lists/*/codes/c/1/0")))
    with monkeypatch.context() as patch:
        patch.setattr("knnstore.datastore.sweeping.remove_tree", killed)
        with pytest.raises(Killed):
            run(here, "repair")
    report = verify(store)
    assert report.intact
    assert report.leftovers  # the runs of the lists that were published
    code, output = run(here, "repair")
    assert (code, "nothing is damaged" in output) == (0, True), output
    assert verify(store).leftovers == ()
    changed = differences(bytes_of(store), bytes_of(made / "books.knnstore"))
    assert [name for name in changed if not name.startswith(("log/", "knnstore.json"))] == []


def test_damaged_lists_of_no_state_are_not_brought_back_by_a_restore(monkeypatch, store_of):
    store = store_of("recentred")
    run(store.parent, "remove", "--store", str(store), "--document", "books/0.txt")
    spoil(next(store.glob("index/*/lists/*/codes/c/1/0")))
    kill_repair(monkeypatch, store, "remove_tree")
    code, told = run(store.parent, "restore", "--store", str(store))
    assert (code, "keys" in told) == (0, True), told
    assert load_manifest(store).indexed == ()
    assert verify(store).intact


@pytest.mark.parametrize(("begins", "ends", "rank"), [([0], [4], 9), ([0, 0], [3, 2], -1), ([3], [0], 2)])
def test_a_cut_that_the_runs_cannot_give_is_an_error(begins, ends, rank):
    read = lambda run, begin, end: np.arange(begin, end).astype(np.uint64)  # noqa: E731
    with pytest.raises(CorruptStoreError, match="rows of a list"):
        cut_list(np.array(begins), np.array(ends), rank, read)
