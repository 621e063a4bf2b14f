"""Hosts of their own: network namespaces with addresses, whose links can be cut."""

import os
import subprocess
import sys
import time

from network_hosts import ip, namespace, needs_namespaces
from s3_servers import BUCKET, Proxy, environment

from knnstore.datastore.edits import editing
from knnstore.datastore.history import changes
from knnstore.datastore.manifest import KeyRecipe, Manifest, ModelIdentity, save_manifest
from knnstore.files import lease

SUBNET = 77
FIRST = Manifest("knnstore", 1, ModelIdentity("m", "0", "0", "0", 10), KeyRecipe("hidden", 8, 16, 8), (), None)
WRITER = """
import sys
from knnstore.datastore.edits import editing
from knnstore.datastore.manifest import load_manifest
from knnstore.errors import LockedError
from knnstore.files import lease
from knnstore.files import path_of
import knnstore.datastore.edits as edits

lease.RENEWED_SECONDS = 0.2
root, look = path_of(sys.argv[1]), edits.version_of

def look_and_wait(path):
    found = look(path)
    if path.name == "knnstore.json":
        print("looked", flush=True)
        sys.stdin.readline()
    return found

try:
    with edits.editing(root) as edit:
        edits.version_of = look_and_wait
        edit.publish(edit.state, "index", "cut off")
except LockedError as error:
    print(error, flush=True)
"""


@needs_namespaces
def test_a_host_whose_network_is_cut_is_replaced_and_can_not_publish_when_it_is_back(moto, url, monkeypatch):
    monkeypatch.setattr(lease, "LAPSED_SECONDS", 2.0)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_machine", lambda: "this host, which doesn't see the other's processes")
    name = f"knn{os.getpid() % 10**6}"
    save_manifest(url, FIRST)
    with namespace(name, SUBNET) as (here, _):
        gateway = Proxy(moto[0].port, here)
        variables = os.environ | environment(gateway.url)
        command = ["ip", "netns", "exec", name, sys.executable, "-c", WRITER, str(url)]
        writer = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout.readline() == "looked\n"
            assert gateway.requests["PUT"] >= 1
            ip("link", "set", f"{name}-0", "down")
            begun = time.monotonic()
            with editing(url) as edit:
                assert time.monotonic() - begun >= lease.LAPSED_SECONDS
                edit.publish(edit.state, "index", "the other host's")
            ip("link", "set", f"{name}-0", "up")
            told, _ = writer.communicate("go on\n", timeout=60)
        finally:
            writer.kill()
            gateway.stop()
    assert f"another writer took over {url}" in told
    assert [change.what for change in changes(url)] == ["the other host's"]
    assert str(url).startswith(f"s3://{BUCKET}/")
