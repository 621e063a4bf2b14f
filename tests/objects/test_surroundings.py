"""What the machine lacks, or the environment gets wrong, is no traceback and no hindrance."""

import pwd

import pytest

from knnstore.errors import UsageError
from knnstore.files import RemotePath
from knnstore.files.objects import cache, service

MALFORMED = ["http://", "localhost:9000", "http:/host", "http://[::1", "http://host:99999", "http://a%zz"]
MALFORMED += ["http://user:secret@host", "ftp://host", "http://host:port", "http://host:0", "x", "https://ho st"]


@pytest.fixture
def homeless(s3, monkeypatch):
    def nobody(_):
        raise KeyError("no such user")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    service.bucket_of.cache_clear()


def test_a_user_without_a_home_reads_and_writes_objects(url, homeless):
    (url / "object").write_bytes(b"here" * 2**16)
    assert (url / "object").read_bytes() == b"here" * 2**16


def test_a_user_without_a_home_or_keys_is_told_of_the_keys_that_are_missing(homeless, s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError, match="the AWS profile nobody can't be used"):
        RemotePath("s3://bucket/object").is_file()


def test_a_user_without_a_home_or_a_folder_for_the_cache_is_told_to_give_one(url, homeless, monkeypatch):
    monkeypatch.delenv(cache.FOLDER_VARIABLE)
    with pytest.raises(UsageError, match=r"set \$KNNSTORE_STORE_CACHE_FOLDER"):
        cache.the_cache()


@pytest.mark.parametrize("endpoint", MALFORMED)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_malformed_endpoint_is_refused_in_a_sentence_that_does_not_repeat_it(name, endpoint, s3, monkeypatch):
    service.bucket_of.cache_clear()
    monkeypatch.setenv(name, endpoint)
    with pytest.raises(UsageError, match=rf"^\${name} isn't the URL of a service") as told:
        RemotePath("s3://bucket/object").is_file()
    assert "secret" not in str(told.value)
