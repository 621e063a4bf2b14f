"""``--overwrite`` discards a store in one step, and nobody who reads it sees half of it."""

import numpy as np
import pytest
from index_stores import make_store

from knnstore.datastore import discarding
from knnstore.datastore.discarding import open_store
from knnstore.datastore.edits import editing
from knnstore.datastore.history import changes
from knnstore.datastore.manifest import MANIFEST_FILE, load_manifest
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import next_segment
from knnstore.errors import UnfinishedError, UsageError

KEYS = np.random.default_rng(0).normal(size=(1200, 16)).astype(np.float32)


@pytest.fixture
def root(tmp_path):
    make_store(tmp_path / "s.knnstore", [KEYS[:700], KEYS[700:1200]], document_rows=100)
    return tmp_path / "s.knnstore"


def overwrite(root):
    manifest = load_manifest(root)
    with editing(root) as edit:
        open_store(edit, manifest.model, manifest.key, parameter="store", overwrite=True)


def test_a_store_that_nobody_reads_is_empty_afterwards_as_a_new_one(root):
    (root / "tuned.json").write_text("{}")
    overwrite(root)
    assert load_manifest(root).state == 0
    assert {path.name for path in root.iterdir()} == {".lock", MANIFEST_FILE}


def test_whoever_reads_a_store_keeps_it_and_whoever_comes_is_told_that_it_is_unfinished(root):
    reader = Datastore(root)
    keys = reader.segments[0].keys(0, 10)
    overwrite(root)
    with pytest.raises(UnfinishedError, match=r"the ingest into .* hasn't ended"):
        Datastore(root)
    np.testing.assert_array_equal(reader.segments[0].keys(0, 10), keys)
    assert reader.segments[1].values(0, 100).shape == (100,)
    assert next_segment(root, None) == "0002"
    assert [change.kind for change in changes(root)][-1] == "overwrite"
    reader.close()
    with editing(root):
        pass
    assert not list((root / "segments").iterdir())


def test_at_no_moment_does_a_reader_see_damage(root, monkeypatch):
    seen = []

    def look(path):
        try:
            Datastore(root).close()
            seen.append("whole")
        except UnfinishedError:
            seen.append("unfinished")
        return removed(path)

    removed = discarding.remove_tree
    monkeypatch.setattr(discarding, "remove_tree", look)
    monkeypatch.setattr("knnstore.datastore.sweeping.remove_tree", look)
    overwrite(root)
    assert set(seen) == {"unfinished"}


def test_a_store_whose_manifest_can_not_be_read_is_discarded_too(root):
    manifest = load_manifest(root)
    (root / MANIFEST_FILE).write_bytes(b"{")
    with editing(root) as edit:
        open_store(edit, manifest.model, manifest.key, parameter="store", overwrite=True)
    assert load_manifest(root) == manifest.__class__("knnstore", 1, manifest.model, manifest.key, (), None)
    assert not (root / "segments").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, root):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    manifest = load_manifest(root)
    with (
        pytest.raises(UsageError, match="choose another name with into="),
        editing(tmp_path / "other") as edit,
    ):
        open_store(edit, manifest.model, manifest.key, parameter="into", overwrite=True)
    assert (tmp_path / "other" / "letter.txt").read_text() == "mine"
