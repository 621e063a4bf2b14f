"""Hosts of their own: network namespaces with addresses, whose links can be cut."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from s3_servers import BUCKET, Proxy, environment

from knnstore.datastore.history import changes, publish
from knnstore.datastore.locking import writing
from knnstore.datastore.manifest import KeyRecipe, Manifest, ModelIdentity, load_manifest, save_manifest
from knnstore.objects import lease

SERVER, HOST = "10.231.77.1", "10.231.77.2"
FIRST = Manifest("knnstore", 1, ModelIdentity("m", "0", "0", "0", 10), KeyRecipe("hidden", 8, 16, 8), (), None)
WRITER = """
import sys
from knnstore.datastore.history import publish
from knnstore.datastore.locking import writing
from knnstore.datastore.manifest import load_manifest
from knnstore.errors import LockedError
from knnstore.objects import lease
from knnstore.objects.path import path_of
import knnstore.datastore.history as history

lease.RENEWED_SECONDS = 0.2
root, look = path_of(sys.argv[1]), history.version_of

def look_and_wait(path):
    found = look(path)
    if path.name == "knnstore.json":
        print("looked", flush=True)
        sys.stdin.readline()
    return found

history.version_of = look_and_wait
with writing(root):
    try:
        publish(root, load_manifest(root), "index", "cut off")
    except LockedError as error:
        print(error, flush=True)
"""


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


@contextmanager
def namespace(name):
    """A network namespace that reaches this one by a pair of devices, ``NAME-0`` here and ``NAME-1`` there."""
    made = ip("netns", "add", name, check=False)
    if made.returncode:
        pytest.skip(f"this machine allows no network namespaces: {made.stderr.strip()}")
    try:
        made = ip("link", "add", f"{name}-0", "type", "veth", "peer", "name", f"{name}-1", "netns", name, check=False)
        if made.returncode:
            pytest.skip(f"this machine allows no pairs of network devices: {made.stderr.strip()}")
        ip("addr", "add", f"{SERVER}/30", "dev", f"{name}-0")
        ip("link", "set", f"{name}-0", "up")
        ip("-n", name, "addr", "add", f"{HOST}/30", "dev", f"{name}-1")
        ip("-n", name, "link", "set", f"{name}-1", "up")
        yield
    finally:
        ip("netns", "del", name, check=False)
        ip("link", "del", f"{name}-0", check=False)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2")
def test_a_host_whose_network_is_cut_is_replaced_and_can_not_publish_when_it_is_back(moto, url, monkeypatch):
    monkeypatch.setattr(lease, "LAPSED_SECONDS", 2.0)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_machine", lambda: "this host, which doesn't see the other's processes")
    name = f"knn{os.getpid() % 10**6}"
    save_manifest(url, FIRST)
    with namespace(name):
        gateway = Proxy(moto[0].port, SERVER)
        variables = os.environ | environment(gateway.url)
        command = ["ip", "netns", "exec", name, sys.executable, "-c", WRITER, str(url)]
        writer = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout.readline() == "looked\n"
            assert gateway.requests["PUT"] >= 1
            ip("link", "set", f"{name}-0", "down")
            begun = time.monotonic()
            with writing(url):
                assert time.monotonic() - begun >= lease.LAPSED_SECONDS
                publish(url, load_manifest(url), "index", "the other host's")
            ip("link", "set", f"{name}-0", "up")
            told, _ = writer.communicate("go on\n", timeout=60)
        finally:
            writer.kill()
            gateway.stop()
    assert "was changed by another writer" in told
    assert [change.what for change in changes(url)] == ["the other host's"]
    assert str(url).startswith(f"s3://{BUCKET}/")
