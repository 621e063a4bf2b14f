"""Stores by an attacker: mutated metadata and arrays, most with valid checksums.

Each is opened, verified and searched in a process with limits on memory and time. It must work or raise one of
knnstore's own errors. Other exceptions, a crash of the interpreter, a hang, more memory than the limit, or opening a
file outside the store are failures.
"""

import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from faults.forking import in_process
from faults.material import make_lived_store
from faults.mutations import mutate
from faults.outcome import Outcome
from knnstore.datastore.store import Datastore
from knnstore.errors import KnnstoreError
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.verification.check import verify

_MEMORY = 2 * 10**9  # bytes that a store of a few kilobytes may cost in addition to the libraries
_SECONDS = 60  # time limit per store, for a busy machine
_OUTSIDE = ("/etc", "/canary")


def torture(count: int, seed: int, folder: Path, part: tuple[int, int] = (0, 1)) -> Outcome:
    """Use ``count`` mutated stores. ``lost``: number of failures; ``silent``: files opened outside the store."""
    outcome = Outcome("hostile")
    in_process(lambda: make_lived_store(folder / "made") and None)
    base = folder / "made" / "books.knnstore"
    files = {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    number = part[0]
    while number < count:
        number = _batch(outcome, files, folder, seed, range(number, count, part[1]))
    return outcome


def _batch(outcome: Outcome, files: dict[str, bytes], folder: Path, seed: int, cases: range) -> int:
    """Run cases in a separate process until it ends, dies or hangs; return the number of the next case."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _use_all(files, folder, seed, cases, writing)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    number, buffer = cases.start, b""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], _SECONDS)
            data = pipe.read(65536) if ready else b""
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                number = _tell(outcome, json.loads(line)) + cases.step
        if not ready:
            os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if number < cases.stop:
        outcome.tried += 1
        outcome.lose(f"store {number} of seed {seed}: {'the interpreter died' if ready else 'it hung'}")
        number += cases.step
    return number


def _tell(outcome: Outcome, line: dict[str, Any]) -> int:
    outcome.tried += 1
    outcome.count(line["kind"])
    outcome.count("refused" if line["refused"] else "used anyway")
    if line["outside"]:
        outcome.silent += 1
        outcome.told.append(f"store {line['number']} ({line['kind']}): {line['outside']} was opened")
    if line["problem"]:
        outcome.lose(f"store {line['number']} ({line['kind']}): {line['problem']}")
    return int(line["number"])


def _use_all(files: dict[str, bytes], folder: Path, seed: int, cases: range, pipe: int) -> None:
    opened: list[str] = []
    sys.addaudithook(lambda event, details: opened.append(str(details[0])) if event == "open" else None)
    root = folder / "hostile.knnstore"
    for number in cases:
        generator = random.Random(f"{seed}/{number}")
        shutil.rmtree(root, ignore_errors=True)
        kind = mutate(generator, files, root)  # before the limit, because it needs memory too
        opened.clear()
        resource.setrlimit(resource.RLIMIT_AS, (_virtual() + _MEMORY, resource.RLIM_INFINITY))
        refused, problem = _use(root)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        outside = next((path for path in opened if path.startswith(_OUTSIDE)), "")
        line = {"number": number, "kind": kind, "refused": refused, "problem": problem, "outside": outside}
        os.write(pipe, json.dumps(line).encode() + b"\n")


def _virtual() -> int:
    """Return the bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _use(root: Path) -> tuple[bool, str]:
    """Return whether any use was refused, and the first exception that isn't one of knnstore's errors."""
    refused, problem = False, ""
    uses: tuple[Callable[[Path], object], ...] = (verify, _search, _read)
    for use in uses:
        try:
            use(root)
        except KnnstoreError:
            refused = True
        except BaseException:
            problem = problem or traceback.format_exc(limit=-3).replace("\n", " ")
    return refused, problem


def _search(root: Path) -> None:
    store = Datastore(root)
    searcher = Searcher(store)
    queries = np.random.default_rng(0).normal(size=(3, searcher.plan.dimension)).astype(np.float32)
    for method in ("lists", "quantised"):
        neighbours = searcher.search(queries, 5, method=method, rows=True)
        _name(store, neighbours.rows)


def _read(root: Path) -> None:
    store = Datastore(root)
    dimension = store.segments[0].dimension
    queries = np.zeros((2, dimension), np.float32)
    from knnstore.indexes.exact import exact_search

    _name(store, exact_search(store, queries, 4, rows=True).rows)
    for segment in store.segments:
        segment.queries()
        for document in store.heldout(segment)[:4]:
            segment.heldout(int(document))


def _name(store: Datastore, rows: Any) -> None:
    """Read what an explanation of a neighbour needs: its document and the tokens before it."""
    segment = store.segments[0]
    for row in rows[rows >= 0][:4]:
        if row < segment.rows:
            str(segment.documents[int(segment.documents.locate(np.array([row]))[0])])
            segment.context(int(row), 8)
