"""Enforce ``--memory`` of a command by the operating system: by a cgroup if that is allowed, else by rlimits.

A memory cgroup limits the total memory of all processes of a command, as ``--memory`` promises, and kills a process if
it is exceeded. ``RLIMIT_DATA`` limits the allocations of each process, used or not, including stacks of threads.
"""

import os
import re
import resource
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from faults.material import make_corpus
from faults.outcome import Outcome

_CGROUPS = Path("/sys/fs/cgroup")
COMMANDS = {
    "ingest": ("ingest", "--corpus", "books/", "--chunk-rows", "4096", "--overwrite"),
    "index": ("index", "--nlist", "256", "--overwrite"),
    "score": ("score", "--store", "books"),
}
_REFUSED = "is too little"
_SMALLEST, _LARGEST = 400_000_000, 3_200_000_000


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: exit code, output, and whether the system killed one of its processes for its memory."""

    code: int
    told: str
    killed: bool


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path | None]:
    """Provide a cgroup with a limit on the total memory of its processes; None if this user may not create one."""
    old = (_CGROUPS / "memory").is_dir()  # version 1
    folder = (_CGROUPS / "memory" if old else _CGROUPS) / f"knnstore-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        yield None
        return
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()


def run_within(folder: Path, limit: int, arguments: Sequence[str]) -> Ended:
    """Run ``knnstore ARGUMENTS`` in a folder: with ``limit`` bytes for all processes, or without a cgroup for each."""
    with memory_cgroup(limit) as group:
        line = [sys.executable, "-m", "knnstore", *arguments]
        done = subprocess.run(
            line,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=bounded(limit if group is None else None, group),
            timeout=600,
        )
        return Ended(done.returncode, done.stdout + done.stderr, group is not None and kills(group) > 0)


def torture(count: int, seed: int, folder: Path) -> Outcome:
    """Run each command under ``count`` / 3 enforced limits from 0.4 to 3.2 GB.

    ``lost``: it was killed, or neither succeeded nor refused before any work. ``silent``: its result differed.
    """
    outcome = Outcome("memory")
    (folder / "here").mkdir(parents=True)
    make_corpus(folder / "here" / "books", documents=40, words=1500, seed=seed)
    steps = max(1, -(-count // len(COMMANDS)))
    results: dict[str, str] = {}
    for step in range(steps):
        limit = _LARGEST - (_LARGEST - _SMALLEST) * step // max(1, steps - 1)
        for name, command in COMMANDS.items():
            ended = run_within(folder / "here", limit, [*command, "--memory", str(limit), "--json", "--quiet"])
            outcome.tried += 1
            refused = ended.code == 1 and _REFUSED in ended.told
            outcome.count(f"{name} {'refused' if refused else 'done'}")
            if ended.killed or not (refused or ended.code == 0):
                outcome.lose(f"{name} within {limit:,} bytes ended with {ended.code}: {ended.told[-400:]}")
            elif not refused and name == "score":
                perplexity = re.findall(r'"perplexity": ([0-9.]+)', ended.told)
                outcome.silent += results.setdefault(name, str(perplexity)) != str(perplexity)
    outcome.count("enforced by a cgroup" if _may_group() else "enforced by RLIMIT_DATA", outcome.tried)
    return outcome


def _may_group() -> bool:
    with memory_cgroup(_LARGEST) as group:
        return group is not None


def bounded(limit: int | None, group: Path | None) -> Callable[[], None]:
    """Return a function that puts a starting process and its children under the limits."""

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    return bound


def kills(group: Path) -> int:
    """Return the number of processes that the system killed in the group."""
    files = [group / name for name in ("memory.oom_control", "memory.events") if (group / name).exists()]
    return sum(
        int(number) for path in files for number in re.findall(r"^oom_kill (\d+)", path.read_text(), re.MULTILINE)
    )
