"""Crash every command at every durable operation, run it again, and compare with an uninterrupted run.

Each run is a process forked from one that has imported everything, so that a crash costs a fraction of a second. The
commands run as on the command line with ``--workers 0``. Some are also killed as real processes, with their Dask
workers, at a random moment.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from faults.forking import in_process
from faults.layer import FAILURES, MODES, Layer, Mode
from faults.material import (
    INDEX,
    INGEST,
    STORE,
    bytes_of,
    copy_of,
    differences,
    grow_corpus,
    make_corpus,
    make_model,
    run,
    spoil,
)
from faults.outcome import Outcome
from knnstore.datastore.commits import file_damage, load_commit
from knnstore.verification.check import verify

_MEMMAPS = ("--keys", "out/keys.npy", "--vals", "out/vals.npy")
COMMANDS: dict[str, tuple[str, ...]] = {
    "ingest": INGEST,
    "index": INDEX,
    "append": INGEST,
    "index of what was appended": INDEX,
    "remove": ("remove", "--store", "books", "--document", "books/2.txt"),
    "restore": ("restore", "--store", "books", "--state", "4"),
    "compact": ("compact", "--store", "books"),
    "suffixes": ("suffixes", "--store", "books"),
    "tune": ("tune", "neighbours.parquet", "--store", "books"),
    "repair": ("repair", "--store", "books"),
    "export": ("export", "--store", "books", "--out", "out"),
    "import": (
        "import",
        *_MEMMAPS,
        "--dim",
        "16",
        "--key-type",
        "float16",
        "--vocabulary",
        "8192",
        "--store",
        "imported",
    ),
    "subset": ("subset", "books", "--sample", "50%", "--into", "half"),
    "merge": ("merge", "half", "books", "--into", "both"),
    "takedown": ("remove", "--store", "books", "--document", "books/4.txt", "--now"),
}
"""Commands, in the order in which they run."""
_ASIDE = ("restore", "repair")  # the next command doesn't start from their results
_MADE = {"subset": "half.knnstore", "merge": "both.knnstore", "export": "out", "import": "imported.knnstore"}
"""Stores that are made or changed, if not the first one."""
_COUNTED = ("repair",)  # its number of states depends on the number of interruptions
_KILLED = ("ingest", "index", "append")  # killed as real processes with their workers
_FEWEST = len(MODES)  # minimum number of cases per command
_REAL = 50  # one case in this many is a kill -9 of a command with its workers
_AGAIN = 4  # one case in this many crashes in the second run too
# Regressions, which once left files behind or couldn't be resumed: an empty folder of a segment; the layout of runs
# without a folder for their records; some runs of a compaction; a damaged index that a repair had taken out of the
# store; the runs of the index that a repair had published; an exact-match memory still marked done while it was
# removed; a half-removed past segment; an index with the last copy of keys whose repair had failed.
_ONCE_LOST: tuple[tuple[str, Mode, int], ...] = (
    ("append", "quota", 13),
    ("index of what was appended", "read-only", 17),
    ("compact", "broken", 693),
    ("repair", "kill", 80),
    ("repair", "read-only", 953),
    ("takedown", "read-only", 734),
    ("compact", "kill", 1096),
    ("repair", "broken", 50),
)


def save_neighbours(folder: Path) -> None:
    """Save the neighbours that ``tune`` reads."""
    run(folder, "score", "--store", "books", "--k", "8", "--save-neighbours", "neighbours.parquet")


def damage(folder: Path) -> None:
    """Damage a file of every part that can be rebuilt; of the index, one that others depend on, and some lists."""
    for name in (
        "segments/*/keys/c/1/0",
        "segments/*/values/c/0",
        "suffixes/*/order/c/0",
        "segments/*/query_tokens/c/0",
    ):
        spoil(next((folder / STORE).glob(name)))
    for name in ("quantizer/codebooks/c/0/0/0", "lists/*/codes/c/0/0"):
        spoil(next((folder / STORE).glob(f"index/*/{name}")))


def name_memmaps(folder: Path) -> None:
    """Give the memmaps names without the number of rows."""
    for path in (folder / "out").glob("*.npy"):
        path.rename(path.with_name("keys.npy" if "_keys" in path.name else "vals.npy"))


_CHANGES: dict[str, Callable[[Path], None]] = {
    "append": grow_corpus,
    "tune": save_neighbours,
    "repair": damage,
    "import": name_memmaps,
}


def torture(count: int, seed: int, folder: Path, part: tuple[int, int] = (0, 1)) -> Outcome:
    """Run ``count`` crashes, spread evenly over all operations and ways to fail; one in fifty is a real kill.

    The regressions come first, each with the operation after it. With as many cases as operations, each operation gets
    one. ``lost``: after the command was run again, the store differed from that of an uninterrupted run, or a failure
    had no error message. ``silent``: after a crash there was a commit record without its files.
    """
    outcome = Outcome("crashes")
    generator = random.Random(seed)
    stages = _stages(folder, outcome)
    killed = count // _REAL
    for number, case in list(enumerate(_cases(stages, count - killed, generator)))[part[0] :: part[1]]:
        try:
            _crash(outcome, folder / f"case-{number}", case)
        except RuntimeError as error:  # an exception that a command must not raise
            outcome.lose(f"{case.story}: {error}")
        if number % 25 == 24:
            print(outcome.text(), file=sys.stderr, flush=True)
    for number in range(killed)[part[0] :: part[1]]:
        name = _KILLED[number % len(_KILLED)]
        _kill(outcome, folder / f"kill-{number}", name, stages[name], generator)
    return outcome


@dataclass(frozen=True, slots=True)
class _Stage:
    """A command: the folder before it, the store it changes, the bytes of that after it, and the number of durable
    operations.
    """

    before: Path
    store: str
    expected: dict[str, bytes]
    operations: int


def _stages(folder: Path, outcome: Outcome) -> dict[str, _Stage]:
    """Run every command once without a fault, and return the stages by name."""
    present = folder / "ingest"
    present.mkdir(parents=True)
    make_corpus(present / "books")
    in_process(lambda: make_model(present / "lm") and None)
    stages = {}
    for name, command in COMMANDS.items():
        before = present
        if name in _CHANGES:
            before = copy_of(present, folder / f"{name}-before")
            in_process(partial(_CHANGES[name], before))
        work = copy_of(before, folder / f"{name}-done")
        store = _MADE.get(name, STORE)
        code, output, operations = in_process(partial(_faulty, work / store, command, 0, "kill", 0))
        if code:
            raise RuntimeError(output)
        stages[name] = _Stage(before, store, bytes_of(work / store), operations)
        outcome.fact(f"operations of {name}", operations)
        if name not in _ASIDE:
            present = work
    return stages


@dataclass(frozen=True, slots=True)
class _Case:
    """One crash: the command, the mode, the operation, the folder before and the bytes after."""

    name: str
    mode: Mode
    target: int
    seed: int
    stage: _Stage

    @property
    def story(self) -> str:
        return f"{self.name}, {self.mode} at operation {self.target} of {self.stage.operations}, seed {self.seed}"


def _cases(stages: dict[str, _Stage], count: int, generator: random.Random) -> list[_Case]:
    """Return ``count`` cases: the regressions, and then others in random order, spread evenly over all operations."""
    known = [
        _Case(name, mode, target + after, 1, stages[name]) for name, mode, target in _ONCE_LOST for after in (0, 1)
    ]
    count -= len(known)
    total = sum(stage.operations for stage in stages.values())
    cases = []
    for name, stage in stages.items():
        share = max(_FEWEST, round(count * stage.operations / total))
        first = generator.randrange(len(MODES))
        for number in range(share):
            mode = MODES[(first + number) % len(MODES)]
            target = 1 + min(int((number + generator.random()) * stage.operations / share), stage.operations - 1)
            cases.append(_Case(name, mode, target, generator.getrandbits(32), stage))
    generator.shuffle(cases)
    return [*known, *cases[: max(0, count)]]


def _crash(outcome: Outcome, work: Path, case: _Case) -> None:
    copy_of(case.stage.before, work)
    outcome.tried += 1
    outcome.count(case.mode)
    store = case.stage.store
    targets = [case.target] if case.seed % _AGAIN else [case.target, 1 + case.target // 2]
    for target in targets:
        ended = in_process(partial(_faulty, work / store, COMMANDS[case.name], target, case.mode, case.seed))
        if ended is not None and case.mode in FAILURES and ended[0] and not _is_reported(case.name, ended[1]):
            outcome.lose(f"{case.story}: {ended[1]}")
        if (work / "after").exists():
            shutil.rmtree(work / store, ignore_errors=True)
            if (work / "after" / store).exists():
                (work / "after" / store).rename(work / store)
            shutil.rmtree(work / "after")
    if case.name != "repair" and (broken := in_process(partial(_broken_promises, work / store))):
        outcome.silent += 1
        outcome.told.append(f"{case.story}: {broken}")
    code, output = in_process(partial(run, work, *COMMANDS[case.name])) or (-1, "died")
    if changed := _changed(case.name, work / store, case.stage.expected):
        outcome.lose(f"{case.story}: {changed[:5]} differ; the second run ended with {code}: {output if code else ''}")
    elif code:  # it was complete when it was killed, and can't be repeated, such as a removal
        outcome.count("complete before the crash")
    shutil.rmtree(work)


def _is_reported(name: str, output: str) -> bool:
    """Return whether a failed command gave the reason; ``repair`` lists what is left with the reasons."""
    return "Error: " in output or (name == "repair" and "\nleft      " in output)


def _faulty(root: Path, command: tuple[str, ...], target: int, mode: Mode, seed: int) -> tuple[int, str, int]:
    """Run a command that changes the store at ``root``; return exit code, output and number of operations."""
    work = root.parent
    layer = Layer(root, target, mode, seed, work / "after")
    with layer.installed():
        code, output = run(work, *command)
    if not target:
        existing = (work / "found").read_text().split("\n") if (work / "found").exists() else []
        if new := {f"{root.name}/{name}" for name in bytes_of(root)} - layer.seen - set(existing):
            raise AssertionError(f"written past the layer: {sorted(new)}")
    return code, output, layer.count


def _broken_promises(root: Path) -> str:
    """Return as text the files that differ from their records."""
    if not (root / "knnstore.json").exists():
        return ""
    problems = [f"{damage.path} {damage.problem}" for damage in verify(root).damages]
    for record in root.rglob("commits/*.json"):  # including parts that aren't published yet
        part = record.parent.parent
        damages = {file.path: file_damage(part, file) for file in load_commit(record).files}
        problems += [f"{part / path} {fault}" for path, fault in damages.items() if fault not in (None, "is missing")]
    return ", ".join(problems[:3])


def _changed(name: str, root: Path, expected: dict[str, bytes]) -> list[str]:
    """Return the files that aren't as expected, except those that count states if their number may differ."""
    changed = differences(bytes_of(root), expected)
    if name not in _COUNTED:
        return changed
    counted = [path for path in changed if path.startswith("log/") or path == "knnstore.json"]
    return [*(path for path in changed if path not in counted), *(d.path for d in verify(root).damages)]


def _kill(outcome: Outcome, work: Path, name: str, stage: _Stage, generator: random.Random) -> None:
    """``kill -9`` a real command with two Dask workers at a random moment, or only one of its workers."""
    copy_of(stage.before, work)
    options = [word for word in COMMANDS[name] if word not in ("--workers", "0")]
    line = [sys.executable, "-m", "knnstore", *options, "--workers", "2"]
    variables = os.environ | {"KNNSTORE_MODEL": str(work / "lm")}
    outcome.tried += 1
    one_worker = generator.random() < 0.5
    outcome.count(f"kill -9 of {'a worker' if one_worker else 'all processes'} of {name}")
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(line, cwd=work, env=variables, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + generator.uniform(3, 20)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
        if one_worker and (workers := _workers(process.pid)) and (work / STORE / "segments").exists():
            time.sleep(generator.uniform(0, 8))
            if workers := _workers(process.pid):
                os.kill(generator.choice(workers), signal.SIGKILL)
            one_worker = False
            deadline = time.monotonic() + 300
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(line, cwd=work, env=variables, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        outcome.lose(f"{name} after kill -9: {done.stderr}")
    elif changed := differences(bytes_of(work / STORE), stage.expected):
        outcome.lose(f"{name} after kill -9: {changed[:5]} differ")
    shutil.rmtree(work)


def _workers(process: int) -> list[int]:
    """Return the worker processes of a command, which are forked from a server below it."""
    return [worker for server in _children(process, b"forkserver") for worker in _children(server)]


def _children(process: int, word: bytes = b"") -> list[int]:
    """Return the child processes, of all threads, whose command lines contain a word."""
    try:
        tasks = Path(f"/proc/{process}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        return [child for child in children if word in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:  # one of them has just ended
        return []
