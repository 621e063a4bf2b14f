"""Killing jobs: a runner that dies between two tasks, and ``kill -9`` of a command at a given moment."""

import os
import signal
import subprocess
import sys
import time

from knnstore.scheduling import SerialRunner

MOST_SECONDS = 120


class KilledError(Exception):
    """Stands for SIGKILL between two tasks."""


class DyingRunner(SerialRunner):
    """Runs ``left`` tasks, then dies; ``ran`` has the names of those that ran."""

    def __init__(self, left=10**9):
        self.left, self.ran = left, []

    def run(self, function, tasks):
        for task in tasks:
            if not task.name.startswith("check-"):  # runs are read back as often as a build goes on
                if not self.left:
                    raise KilledError
                self.left -= 1
                self.ran.append(task.name)
            yield function(task)


def kill_when(moment, folder, command):
    """Start the command, kill -9 its whole process group as soon as ``moment()`` holds; whether it came to that."""
    process = subprocess.Popen(
        [sys.executable, "-m", "knnstore", *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    begun = time.monotonic()
    while process.poll() is None and not moment():
        assert time.monotonic() - begun < MOST_SECONDS
        time.sleep(0.002)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    _, told = process.communicate()
    assert killed or process.returncode == 0, told.decode()
    return killed
