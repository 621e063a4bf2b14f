"""Crash every command at every durable operation, run it again, and compare with a run that nothing interrupted.

Each run is a process of its own, forked from one that has imported everything, so that a crash costs a fraction of a
second. The commands are those that people type, in this process's place (``--workers 0``); and some are killed for
real, with their Dask workers, at a random moment.
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
    "import": ("import", *_MEMMAPS, "--dim", "16", "--vocabulary", "8192", "--store", "imported"),
    "subset": ("subset", "books", "--sample", "50%", "--into", "half"),
    "merge": ("merge", "half", "books", "--into", "both"),
    "takedown": ("remove", "--store", "books", "--document", "books/4.txt", "--now"),
}
"""In the order in which they follow each other."""
_ASIDE = ("restore", "repair")  # what it makes isn't what the next command finds
_MADE = {"subset": "half.knnstore", "merge": "both.knnstore", "export": "out", "import": "imported.knnstore"}
"""The stores that are made or changed, where that isn't the first one."""
_COUNTED = ("repair",)  # how many states it makes depends on how often it was interrupted
_KILLED = ("ingest", "index", "append")  # for real, with the workers that they have
_FEWEST = len(MODES)  # cases of a command
_REAL = 50  # one case in so many is a kill -9 of a command with its workers
_AGAIN = 4  # one case in so many crashes in the second run as well
# Of what once left something behind, or couldn't go on: a segment's folder and nothing in it; the runs' layout and no
# folder for their records; some runs of a compaction; a damaged index that a repair had taken out of the store; the
# runs of the index that a repair had published; an exact-match memory that was still marked done while it was removed;
# a past segment that was half removed; an index with the last copy of keys whose repair had failed.
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
    """What ``tune`` reads."""
    run(folder, "score", "--store", "books", "--k", "8", "--save-neighbours", "neighbours.parquet")


def damage(folder: Path) -> None:
    """Spoil something of every part that can be made again; of the index what others depend on, and some lists."""
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
    """Names that don't tell of rows."""
    for path in (folder / "out").glob("*.npy"):
        path.rename(path.with_name("keys.npy" if "_keys" in path.name else "vals.npy"))


_CHANGES: dict[str, Callable[[Path], None]] = {
    "append": grow_corpus,
    "tune": save_neighbours,
    "repair": damage,
    "import": name_memmaps,
}


def torture(count: int, seed: int, folder: Path, part: tuple[int, int] = (0, 1)) -> Outcome:
    """``count`` crashes, spread evenly over all operations and the ways to fail; one in fifty is a real one.

    The first are those that once were lost, each with the operation after it. Of as many cases as there are operations,
    each operation gets one. ``lost``: the store isn't, byte for byte, that of an uninterrupted run after the command
    was run again, or a failure wasn't told in a sentence. ``silent``: after a crash a commit record was there whose
    files weren't.
    """
    outcome = Outcome("crashes")
    generator = random.Random(seed)
    stages = _stages(folder, outcome)
    killed = count // _REAL
    for number, case in list(enumerate(_cases(stages, count - killed, generator)))[part[0] :: part[1]]:
        try:
            _crash(outcome, folder / f"case-{number}", case)
        except RuntimeError as error:  # an exception that no command may end with
            outcome.lose(f"{case.story}: {error}")
        if number % 25 == 24:
            print(outcome.text(), file=sys.stderr, flush=True)
    for number in range(killed)[part[0] :: part[1]]:
        name = _KILLED[number % len(_KILLED)]
        _kill(outcome, folder / f"kill-{number}", name, stages[name], generator)
    return outcome


@dataclass(frozen=True, slots=True)
class _Stage:
    """A command: the folder before it, the store that it changes, that one's bytes after it, and the number of its
    durable operations.
    """

    before: Path
    store: str
    expected: dict[str, bytes]
    operations: int


def _stages(folder: Path, outcome: Outcome) -> dict[str, _Stage]:
    """Every command that there is, run once without a fault."""
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
        code, told, operations = in_process(partial(_faulty, work / store, command, 0, "kill", 0))
        if code:
            raise RuntimeError(told)
        stages[name] = _Stage(before, store, bytes_of(work / store), operations)
        outcome.fact(f"operations of {name}", operations)
        if name not in _ASIDE:
            present = work
    return stages


@dataclass(frozen=True, slots=True)
class _Case:
    """One crash: of which command, how, at which of its operations; the folder before and the bytes after."""

    name: str
    mode: Mode
    target: int
    seed: int
    stage: _Stage

    @property
    def story(self) -> str:
        return f"{self.name}, {self.mode} at operation {self.target} of {self.stage.operations}, seed {self.seed}"


def _cases(stages: dict[str, _Stage], count: int, generator: random.Random) -> list[_Case]:
    """``count`` cases: those that once were lost, and then others in a random order, a command's share of them being
    that of its operations, over which they are spread."""
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
    code, told = in_process(partial(run, work, *COMMANDS[case.name])) or (-1, "died")
    if changed := _changed(case.name, work / store, case.stage.expected):
        outcome.lose(f"{case.story}: {changed[:5]} differ; the second run ended with {code}: {told if code else ''}")
    elif code:  # it had been done when it was killed, and can't be done twice: one can't remove what is gone
        outcome.count("had been done before")
    shutil.rmtree(work)


def _is_reported(name: str, output: str) -> bool:
    """Whether a command that failed says why: ``repair`` does what it can, and lists the rest with the reasons."""
    return "Error: " in output or (name == "repair" and "\nleft      " in output)


def _faulty(root: Path, command: tuple[str, ...], target: int, mode: Mode, seed: int) -> tuple[int, str, int]:
    """A command in the folder of the store at ``root``, which it changes: exit code, what it said, and operations."""
    work = root.parent
    layer = Layer(root, target, mode, seed, work / "after")
    with layer.installed():
        code, told = run(work, *command)
    if not target:
        found = (work / "found").read_text().split("\n") if (work / "found").exists() else []
        if new := {f"{root.name}/{name}" for name in bytes_of(root)} - layer.seen - set(found):
            raise AssertionError(f"written past the layer: {sorted(new)}")
    return code, told, layer.count


def _broken_promises(root: Path) -> str:
    """Files that a record tells of and that aren't what it says, in words."""
    if not (root / "knnstore.json").exists():
        return ""
    told = [f"{damage.path} {damage.problem}" for damage in verify(root).damages]
    for record in root.rglob("commits/*.json"):  # of parts that no state has yet, too
        part = record.parent.parent
        damages = {file.path: file_damage(part, file) for file in load_commit(record).files}
        told += [f"{part / path} {damage}" for path, damage in damages.items() if damage not in (None, "is missing")]
    return ", ".join(told[:3])


def _changed(name: str, root: Path, expected: dict[str, bytes]) -> list[str]:
    """Files that aren't as expected, those aside that count the states where their number may differ."""
    changed = differences(bytes_of(root), expected)
    if name not in _COUNTED:
        return changed
    counted = [path for path in changed if path.startswith("log/") or path == "knnstore.json"]
    return [*(path for path in changed if path not in counted), *(d.path for d in verify(root).damages)]


def _kill(outcome: Outcome, work: Path, name: str, stage: _Stage, generator: random.Random) -> None:
    """``kill -9`` a real command with two Dask workers at a random moment, or one of its workers alone."""
    copy_of(stage.before, work)
    options = [word for word in COMMANDS[name] if word not in ("--workers", "0")]
    line = [sys.executable, "-m", "knnstore", *options, "--workers", "2"]
    variables = os.environ | {"KNNSTORE_MODEL": str(work / "lm")}
    outcome.tried += 1
    alone = generator.random() < 0.5
    outcome.count(f"kill -9 of {'a worker' if alone else 'all processes'} of {name}")
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(line, cwd=work, env=variables, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + generator.uniform(3, 20)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
        if alone and (workers := _workers(process.pid)) and (work / STORE / "segments").exists():
            time.sleep(generator.uniform(0, 8))
            if workers := _workers(process.pid):
                os.kill(generator.choice(workers), signal.SIGKILL)
            alone = False
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
    """Processes below a Dask nanny: those that do the work."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
        children = [int(word) for word in text.split()]
        named = [(child, Path(f"/proc/{child}/cmdline").read_bytes()) for child in children]
    except OSError:  # one of them is just ending
        return []
    return [child for child, line in named if b"spawn_main" in line]
