"""A real Dask cluster on loopback: a scheduler and three workers, each a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

MOST_SECONDS = 120
HERE = Path(__file__).parent


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
    scheduler: subprocess.Popen = None
    workers: list[subprocess.Popen] = field(default_factory=list)

    @property
    def scheduler_file(self):
        return self.folder / "scheduler.json"

    @property
    def address(self):
        return json.loads(self.scheduler_file.read_text())["address"]

    def start(self, workers):
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
        command = [*inside, sys.executable, "-m", "distributed.cli.dask_" + kind, "--no-dashboard"]
        command += ["--host", host or self.host]
        command += ["--scheduler-file", str(self.scheduler_file), *arguments]
        path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                command, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=log, cwd=self.folder
            )

    def kill(self, worker):
        self.workers[worker].kill()

    def freeze(self, worker):
        self.workers[worker].send_signal(signal.SIGSTOP)

    def thaw(self, worker):
        self.workers[worker].send_signal(signal.SIGCONT)

    def stop(self):
        for process in [*self.workers, self.scheduler]:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
