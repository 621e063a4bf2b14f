"""Killing jobs: a runner that dies between two tasks, and ``kill -9`` of a command at a given moment."""

import multiprocessing
import os
import signal
import time
from contextlib import suppress

import pytest

from knnstore.cli import main
from knnstore.scheduling import SerialRunner

MOST_SECONDS = 120
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "transformers", "faiss", "zarr", "pyarrow.parquet", "knnstore.ingestion"])


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


def killed_at(points, job, after_kill=lambda: None):
    """Run ``job(runner)`` killed each time that so many tasks have run in all, then to its end.

    Returns the sorted names of the tasks that ran. ``after_kill`` is called after every kill.
    """
    ran = []
    for point in points:
        runner = DyingRunner(point - len(ran))
        with pytest.raises(KilledError):
            job(runner)
        ran += runner.ran
        assert len(ran) == point
        after_kill()
    last = DyingRunner()
    job(last)
    return sorted(ran + last.ran)


def kill_when(moment, folder, command):
    """Start the command, kill -9 its whole process group as soon as ``moment()`` holds; whether it came to that.

    The process is forked from a server that has imported the libraries, which saves most of its time.
    """
    process = _SERVER.Process(target=_type, args=(str(folder), command))
    process.start()
    begun = time.monotonic()
    while process.is_alive() and not moment():
        assert time.monotonic() - begun < MOST_SECONDS
        time.sleep(0.002)
    killed = process.is_alive()
    if killed:
        with suppress(ProcessLookupError):  # it has only just begun, and has no group of its own yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()
    assert killed or process.exitcode == 0
    return killed


def _type(folder, command):
    os.setsid()
    os.chdir(folder)
    main([*command, "--quiet"])
