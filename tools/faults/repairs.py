"""Damage each file of stores of every kind, one at a time: repair must end and restore it, or report why not."""

import random
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from faults.forking import in_process
from faults.kinds import KINDS, make_kinds
from faults.material import run, spoil
from faults.outcome import Outcome
from knnstore.datastore.store import Datastore
from knnstore.indexes.exact import exact_search
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.verification.check import verify

_SECONDS = 120  # time limit of a repair, for a busy machine
_MADE_AGAIN = ("index/", "suffixes/")  # parts of a store in which every file except plans can be rebuilt
_PLANS = ("index.json", "suffixes.json")


def torture(count: int, seed: int, folder: Path, part: tuple[int, int] = (0, 1), kinds: Any = KINDS) -> Outcome:
    """Damage ``count`` files, one at a time, in random order over all kinds of stores.

    ``lost``: a repair didn't end, or neither succeeded nor gave a reason. ``silent``: it succeeded, but verify or a
    search finds damage. ``part``: (i, n) for every n-th case from the i-th on.
    """
    outcome = Outcome("repairs")
    stores: dict[str, Path] = in_process(lambda: make_kinds(folder / "kinds", kinds))
    cases = [(kind, name) for kind, store in stores.items() for name in _files(store)]
    outcome.fact("kinds of stores", len(stores))
    outcome.fact("files", len(cases))
    random.Random(seed).shuffle(cases)
    expected = {kind: in_process(partial(neighbours, store)) for kind, store in stores.items()}
    for kind, name in cases[:count][part[0] :: part[1]]:
        work = folder / "work"
        shutil.copytree(stores[kind].parent, work, symlinks=True)
        story, end = f"{name} of {kind}", in_process(partial(_in_time, work / stores[kind].name, name, expected[kind]))
        outcome.tried += 1
        how, problem = end or ("didn't end", f"repair didn't end within {_SECONDS} s")
        outcome.count(how)
        if how == "wrong":
            outcome.silent += 1
            outcome.told.append(f"{story}: {problem}")
        elif problem:
            outcome.lose(f"{story}: {problem}")
        shutil.rmtree(work)
    return outcome


def _files(store: Path) -> list[str]:
    files = (path for path in sorted(store.rglob("*")) if path.is_file() and path.name != ".lock")
    return [path.relative_to(store).as_posix() for path in files if path.stat().st_size]


def _in_time(store: Path, name: str, expected: list[Any]) -> tuple[str, str]:
    signal.alarm(_SECONDS)  # kills this process
    return repair_one(store, name, expected)


def repair_one(store: Path, name: str, expected: list[Any]) -> tuple[str, str]:
    """Return how the repair of a damaged file ended, and the problem if that is a failure."""
    spoil(store / name)
    if name == "knnstore.json":
        return "left", ""
    code, output = run(store.parent, "repair", "--store", str(store), "--corpus", "books/")
    report = verify(store)
    if code not in (0, 1) or (code and "left      " not in output):
        return "failed", f"ended with {code}: {output}"
    if code:
        return "left", output if _wrongly_left(store, name) else ""
    if not report.intact:
        return "wrong", f"{output}; {report.damages[:3]}"
    same = all(np.array_equal(now, before) for now, before in zip(neighbours(store), expected, strict=True))
    return "repaired", "" if same else "a search finds other keys"


def _wrongly_left(store: Path, name: str) -> bool:
    """Return whether a file that was left could have been rebuilt, or whether the suggested command doesn't help."""
    if name.endswith("index.json"):
        code, _ = run(store.parent, "index", "--store", str(store), "--overwrite", "--nlist", "5")
        return bool(code) or not verify(store).intact
    return name.startswith(_MADE_AGAIN) and not name.endswith(_PLANS)


def neighbours(store: Path) -> list[Any]:
    """Return the results of an exact search and of one that probes all lists of the index."""
    opened = Datastore(store)
    queries = np.random.default_rng(0).normal(size=(3, opened.segments[0].dimension)).astype(np.float32)
    searcher = Searcher(opened)
    both = exact_search(opened, queries, 4, rows=True), searcher.search(queries, 4, searcher.plan.nlist, rows=True)
    return [np.sort(array) for each in both for array in (each.rows, each.values) if array is not None]
