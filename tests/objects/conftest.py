"""A real S3 server on loopback, with a proxy before it, for the tests of a package."""

import uuid

import pytest

pytest.importorskip("obstore", reason="needs the extra 'cloud'")
pytest.importorskip("moto", reason="needs moto's server")

from s3_servers import BUCKET, Faults, MotoServer, Proxy, environment, make_bucket

from knnstore.files import RemotePath
from knnstore.files.objects import cache, service


@pytest.fixture(scope="session")
def moto():
    """moto's server and a client of boto3's, which reaches it past the proxy."""
    server = MotoServer().wait()
    yield server, make_bucket(server.url)
    server.stop()


@pytest.fixture(scope="session")
def the_proxy(moto):
    started = Proxy(moto[0].port)
    yield started
    started.stop()


@pytest.fixture
def s3(moto, the_proxy, tmp_path, monkeypatch):
    """The proxy, all well and nothing counted; the environment leads to it, and to a cache of the test's own."""
    for name, value in (environment(the_proxy.url) | {cache.FOLDER_VARIABLE: str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    service.bucket_of.cache_clear()
    the_proxy.faults = Faults()
    the_proxy.forget()
    yield the_proxy
    the_proxy.faults = Faults()
    service.bucket_of.cache_clear()


@pytest.fixture
def client(moto):
    """boto3's client, past the proxy."""
    return moto[1]


@pytest.fixture
def url(s3):
    """A place of the test's own in the bucket."""
    return RemotePath(f"s3://{BUCKET}/{uuid.uuid4().hex}")
