"""Paths that are URLs, the sums of objects, and a service's errors as sentences."""

import io
import pickle
import shutil
import sys
import threading
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_servers import BUCKET, SECRET

from knnstore.datastore.store import store_path
from knnstore.errors import ResourceError, UsageError
from knnstore.files import (
    ConditionError,
    RemotePath,
    files_of,
    load_json,
    open_regular,
    path_of,
    read_raw,
    replacing,
    replacing_path,
    sums,
    write_atomically,
    write_json,
)
from knnstore.files.objects import service


def test_a_url_is_a_path_and_stays_one():
    root = path_of("s3://bucket/a/books.knnstore")
    child = root / "segments" / "0000"
    assert str(child) == "s3://bucket/a/books.knnstore/segments/0000"
    assert child.relative_to(root).as_posix() == "segments/0000"
    assert [type(path) for path in (child.parent, child.with_name("x"), root.joinpath("a"))] == [RemotePath] * 3
    assert (root.key, root.name, root.absolute()) == ("a/books.knnstore", "books.knnstore", root)
    assert pickle.loads(pickle.dumps(child)) == child
    assert path_of(str(child)) == child
    assert path_of("a/b") == Path("a/b")


@pytest.mark.parametrize("use", [open, np.fromfile, shutil.rmtree, io.FileIO, Path])
def test_what_would_hand_a_url_to_the_operating_system_is_refused(use):
    with pytest.raises(UsageError, match=r"s3://bucket/x is in object storage.*copy the store to a disk"):
        use(RemotePath("s3://bucket/x"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("s3://", "has no bucket"),
        ("s3://bucket", "is a whole bucket"),
        ("s3://bucket/../x", "has no bucket"),
        ("ftp://host/x", "ftp:// isn't known; give a path, file://, s3://, gs://, az://"),
    ],
)
def test_a_url_that_is_no_place_for_a_store_is_refused(given, says):
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        store_path(given)


def test_folders_are_what_objects_lie_in(url):
    for name in ("a/zarr.json", "a/c/0/0", "a/c/1/0", "ab/x.json", "top.json"):
        (url / name).write_bytes(name.encode())
    assert [path.name for path in url.iterdir()] == ["a", "ab", "top.json"]
    assert [path.relative_to(url).as_posix() for path in url.glob("*/*.json")] == ["a/zarr.json", "ab/x.json"]
    assert [path.relative_to(url).as_posix() for path in url.glob("*/c")] == ["a/c"]
    assert sorted(path.relative_to(url).as_posix() for path in url.rglob("0")) == ["a/c/0/0", "a/c/1/0"]
    assert (url / "a").is_dir()
    assert (url / "a").exists()
    assert not (url / "a").is_file()
    assert not (url / "b").exists()
    assert (url / "top.json").stat().st_size == 8
    assert files_of(url).remove_below(url / "a") == 11 + 7 + 7
    assert [path.name for path in url.iterdir()] == ["ab", "top.json"]
    (url / "top.json").unlink()
    (url / "top.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (url / "top.json").stat()


def test_what_is_written_durably_on_a_disk_is_written_so_to_a_bucket(url):
    write_atomically(url / "a", b"hello")
    write_json(url / "b.json", {"x": 1})
    with replacing(url / "c") as file:
        file.write(b"123")
    with replacing_path(url / "d") as aside:
        aside.write_bytes(b"456")
    with pytest.raises(ZeroDivisionError), replacing(url / "c") as file:
        file.write(b"not this")
        raise ZeroDivisionError
    assert open_regular(url / "a").read() == b"hello"
    assert load_json(url / "b.json") == {"x": 1}
    assert (read_raw(url / "c"), read_raw(url / "d", 1, 3)) == (b"123", b"56")


def test_of_two_that_replace_the_same_version_one_is_refused(url):
    first = files_of(url).write(url, b"one", only=None)
    with pytest.raises(ConditionError):
        files_of(url).write(url, b"other", only=None)
    files_of(url).write(url, b"two", only=first)
    with pytest.raises(ConditionError):
        files_of(url).replace_only(url, b"three", first)
    assert url.read_bytes() == b"two"


def test_a_conditional_write_whose_answer_was_lost_counts_as_done(url, s3):
    first = files_of(url).write(url, b"one")
    s3.forget()
    s3.faults.lost = 1

    def recover():
        s3.faults.lost = 0

    threading.Timer(0.05, recover).start()
    files_of(url).replace_only(url, b"two", first)
    assert s3.struck["lost"] >= 1
    assert url.read_bytes() == b"two"


@given(st.binary(max_size=300), st.integers(8, 64))
def test_the_sums_of_an_object_are_those_of_its_parts(data, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "_BLOCK", block)
        found = sums.sums_of(data)
        assert found.crc32c == google_crc32c.value(data)
        assert len(data) <= 4 or found.body == google_crc32c.value(data[:-4])
        size = found.block_bytes
        assert found.blocks.tolist() == [google_crc32c.value(data[at : at + size]) for at in range(0, len(data), size)]
        assert found.fits(data)
        again = sums.sums_from(found.attributes(), len(data))
        assert again is not None
        assert (again.crc32c, again.body, again.blocks.tolist()) == (found.crc32c, found.body, found.blocks.tolist())
        assert sums.sums_from(found.attributes(), len(data) + size * 200) is None
        if data:
            assert not found.fits(bytes([data[0] ^ 1]) + data[1:])


def test_the_sums_of_the_largest_objects_still_fit_the_metadata_of_a_service():
    for size in (2**20, 2**27, 2**27 + 1, 2**32, 5 * 2**40):
        blocks = -(-size // sums.block_bytes(size))
        assert blocks <= 128
        whole = sums.Sums(size, 0, 0, np.zeros(blocks, np.uint32))
        assert sum(len(name) + len(value) for name, value in whole.attributes().items()) < 1024


def test_a_service_that_refuses_is_named_with_the_next_step_and_without_a_secret(url, s3, monkeypatch):
    monkeypatch.setattr(service, "_RETRY", {"max_retries": 1})
    s3.faults.broken = 1
    with pytest.raises(
        ResourceError, match=r"can't write s3://.*: it answered 500 InternalError. Run the same command"
    ):
        url.write_bytes(b"x")
    s3.faults.broken = 0
    with pytest.raises(ResourceError, match=r"NoSuchBucket. Create the bucket s3://no-such-bucket first") as raised:
        RemotePath("s3://no-such-bucket/x").write_bytes(b"x")
    assert SECRET not in str(raised.value)


def test_a_profile_that_is_not_there_is_a_sentence(monkeypatch, tmp_path):
    service.bucket_of.cache_clear()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(UsageError, match=r"the AWS profile nobody can't be used"):
        RemotePath("s3://bucket/x").exists()


def test_keys_of_a_profile_are_used(s3, url, monkeypatch, tmp_path):
    (tmp_path / "credentials").write_text(f"[work]\naws_access_key_id = AKIDWORK\naws_secret_access_key = {SECRET}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    service.bucket_of.cache_clear()
    url.write_bytes(b"x")
    assert url.read_bytes() == b"x"
    assert s3.requests["PUT"] == 1


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    service.bucket_of.cache_clear()
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"pip install 'knnstore\[cloud\]'"):
        RemotePath(f"s3://{BUCKET}/x").exists()
