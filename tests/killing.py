"""Killing jobs: a runner that dies between two tasks, and ``kill -9`` of a command at a given moment."""

import multiprocessing
import os
import signal
import time
from contextlib import suppress

import pytest

from knnstore.cli import main
from knnstore.ingestion.tasks import TASK_MODULES
from knnstore.scheduling import SerialRunner

MOST_SECONDS = 120
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["knnstore.cli", "knnstore.indexing.job", "knnstore.scoring.job", *TASK_MODULES, "distributed.cli.dask_worker"]
)


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


class ForkedProcess:
    """A process forked from a server that has imported the libraries, which saves most of its time.

    ``log``: the file that gets what it prints. Its process group is its own.
    """

    def __init__(self, function, *arguments, folder, log=None):
        if log is not None:
            log.touch()
        call = (function, arguments, str(folder), log, dict(os.environ))
        self._process = _SERVER.Process(target=_call, args=call)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self._process.exitcode

    def kill(self):
        self._process.kill()

    def kill_group(self):
        with suppress(ProcessLookupError):  # it has only just begun, and has no group of its own yet
            os.killpg(self.pid, signal.SIGKILL)
        self.kill()

    def send_signal(self, number):
        if self._process.is_alive():
            os.kill(self.pid, number)


def _call(function, arguments, folder, log, environment):
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)  # the server has that of its first process
    os.chdir(folder)
    if log is not None:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    function(*arguments)


def kill_when(moment, folder, command):
    """Start the command, kill -9 its whole process group as soon as ``moment()`` holds; whether it came to that."""
    process = ForkedProcess(_type, [*command, "--quiet"], folder=folder)
    begun = time.monotonic()
    while process.poll() is None and not moment():
        assert time.monotonic() - begun < MOST_SECONDS
        time.sleep(0.002)
    killed = process.poll() is None
    if killed:
        process.kill_group()
    assert process.wait() == 0 or killed
    return killed


def _type(words):
    main(words)
