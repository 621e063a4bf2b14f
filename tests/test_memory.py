"""The memory promise, measured: the peak of all processes together of each command, on a small store."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from faults.limits import bounded, kills, memory_cgroup

psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.slow

PROMISE = 2_000_000_000


def peak_of(folder, *arguments):
    """Most memory, in bytes, that the command and its children held at once; shared pages are counted once.

    The system gives none of them more than was promised, and where it lets us, not all of them together.
    """
    command = [sys.executable, "-m", "knnstore", *arguments, "--memory", "2GB"]
    peak = 0
    with memory_cgroup(PROMISE) as group, (folder / "log").open("w") as log:
        process = psutil.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, preexec_fn=bounded(PROMISE, group)
        )
        while process.poll() is None:
            peak = max(peak, sum(map(_held, [process, *_children(process)])))
            time.sleep(0.2)  # reading a process's shared pages takes a while itself
        assert group is None or kills(group) == 0
    assert process.returncode == 0, (folder / "log").read_text()
    return peak


def _children(process):
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _held(process):
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return getattr(memory, "pss", memory.rss)


@pytest.fixture(scope="module")
def folder(tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    shutil.copytree(tiny_corpus, folder / "books")
    return folder


def test_every_command_stays_under_its_promise(folder):
    commands = {
        "ingest": (
            "ingest",
            "--corpus",
            "books/",
            "--chunk-rows",
            "1024",
            "--workers",
            str(min(2, os.cpu_count() or 1)),
        ),
        "index": ("index", "--nlist", "32", "--pq-bytes", "8"),
        "score": ("score", "--store", "books"),
    }
    peaks = {name: peak_of(folder, *command) for name, command in commands.items()}
    assert {name: peak for name, peak in peaks.items() if peak > PROMISE} == {}
    assert min(peaks.values()) > 100_000_000  # something was measured
