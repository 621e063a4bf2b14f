"""Hosts of their own for tests: network namespaces with addresses, whose links can be cut."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2"
)


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


@contextmanager
def namespace(name, subnet):
    """A network namespace that reaches this one by a pair of devices, ``NAME-0`` here and ``NAME-1`` there.

    Yields the addresses of both. ``subnet``: a number that no other test uses.
    """
    server, host = f"10.231.{subnet}.1", f"10.231.{subnet}.2"
    made = ip("netns", "add", name, check=False)
    if made.returncode:
        pytest.skip(f"this machine allows no network namespaces: {made.stderr.strip()}")
    try:
        made = ip("link", "add", f"{name}-0", "type", "veth", "peer", "name", f"{name}-1", "netns", name, check=False)
        if made.returncode:
            pytest.skip(f"this machine allows no pairs of network devices: {made.stderr.strip()}")
        ip("addr", "add", f"{server}/30", "dev", f"{name}-0")
        ip("link", "set", f"{name}-0", "up")
        ip("-n", name, "addr", "add", f"{host}/30", "dev", f"{name}-1")
        ip("-n", name, "link", "set", f"{name}-1", "up")
        yield server, host
    finally:
        ip("netns", "del", name, check=False)
        ip("link", "del", f"{name}-0", check=False)
