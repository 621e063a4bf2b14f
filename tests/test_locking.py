"""One writer at a time."""

import os
import signal
import subprocess
import sys

import pytest

from knnstore.datastore.locking import writing
from knnstore.errors import LockedError

HOLDER = """
import sys, threading
from pathlib import Path
from knnstore.datastore.locking import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    threading.Event().wait()  # until it is killed
"""


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_told_who_is_writing(tmp_path, holder):
    told = f"is being written by process {holder.pid} on .* since .*: wait for it"
    with pytest.raises(LockedError, match=told), writing(tmp_path):
        pass


def test_a_killed_writer_lets_go(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with writing(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_the_lock_is_let_go_after_success_and_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="on purpose"), writing(tmp_path):
        raise RuntimeError("on purpose")
    with writing(tmp_path):
        pass
    assert (tmp_path / ".lock").read_bytes() == b""


def test_within_one_process_too_there_is_one_writer(tmp_path):
    with writing(tmp_path), pytest.raises(LockedError, match=f"process {os.getpid()}"), writing(tmp_path):
        pass
