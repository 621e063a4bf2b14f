"""A real Dask cluster on loopback: a scheduler and three workers, each a process of its own."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import dask
from killing import ForkedProcess

MOST_SECONDS = 120
IMPORTED = (Path(__file__).parent, Path(__file__).parents[2])  # folders of what tasks import


def wait_until(condition, what):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < MOST_SECONDS, f"waited {MOST_SECONDS} s for {what}"
        time.sleep(0.02)


@dataclass
class LoopbackCluster:
    """``dask scheduler`` and ``dask worker`` processes; the workers have two threads and no nanny."""

    folder: Path
    host: str = "127.0.0.1"  # the address of this machine that the processes use
    scheduler: ForkedProcess = None
    workers: list[ForkedProcess | subprocess.Popen] = field(default_factory=list)

    @property
    def scheduler_file(self):
        return self.folder / "scheduler.json"

    @property
    def address(self):
        return json.loads(self.scheduler_file.read_text())["address"]

    def start(self, workers):
        try:
            return self._start_all(workers)
        except BaseException:
            self.stop()
            raise

    def _start_all(self, workers):
        self.scheduler = self._start("scheduler", "--port", "0")
        wait_until(self.scheduler_file.is_file, "the scheduler")
        for _ in range(workers):
            self.add_worker()
        logs = [self.folder / f"worker-{number}.log" for number in range(workers)]
        wait_until(lambda: all("Registered to" in log.read_text() for log in logs), "the workers")
        return self

    def add_worker(self, *, inside=(), host=None):
        """``inside``: words to start it by, as in a network namespace; ``host``: the address that it has there."""
        arguments = ["--nthreads", "2", "--no-nanny", "--local-directory", str(self.folder)]
        self.workers.append(self._start(f"worker-{len(self.workers)}", *arguments, inside=inside, host=host))

    def _start(self, name, *arguments, inside=(), host=None):
        kind = name.partition("-")[0]
        words = ["--no-dashboard", "--host", host or self.host, "--scheduler-file", str(self.scheduler_file)]
        log = self.folder / f"{name}.log"
        if not inside:
            return ForkedProcess(_serve, kind, [*words, *arguments], folder=self.folder, log=log)
        command = [*inside, sys.executable, "-m", f"distributed.cli.dask_{kind}", *words, *arguments]
        path = os.pathsep.join([*map(str, IMPORTED), os.environ.get("PYTHONPATH", "")])
        with log.open("w") as file:
            return subprocess.Popen(
                command, env=os.environ | {"PYTHONPATH": path}, stdout=file, stderr=file, cwd=self.folder
            )

    def kill(self, worker):
        self.workers[worker].kill()

    def freeze(self, worker):
        self.workers[worker].send_signal(signal.SIGSTOP)

    def thaw(self, worker):
        self.workers[worker].send_signal(signal.SIGCONT)

    def stop(self):
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def _serve(kind, words):
    """Run ``dask scheduler`` or ``dask worker``, without its profiler and clock, which take 5 % of a slow core each."""
    sys.path[:0] = map(str, IMPORTED)
    dask.config.set({"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s"})
    importlib.import_module(f"distributed.cli.dask_{kind}").main(words)
