"""Flip one bit anywhere in a store: ``verify`` must find it and name the place, and no search may use it."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from faults.kinds import make_kinds
from faults.material import make_lived_store
from faults.outcome import Outcome
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError, MismatchError
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.passages import Passages
from knnstore.scoring.tuned_record import load_tuned
from knnstore.suffix_array.build import open_suffixes
from knnstore.suffix_array.contexts import contexts_of
from knnstore.verification.check import verify

_SEARCHES = 8  # number of flips after which the damaged store is searched too


def torture(count: int, seed: int, folder: Path, part: tuple[int, int] = (0, 1)) -> Outcome:
    """Flip ``count`` bits, spread evenly over stores of all kinds and one with a history: see ``flip_in``."""
    outcome = Outcome("flips")
    stores = [make_lived_store(folder / "lived"), *make_kinds(folder / "kinds").values()]
    outcome.fact("stores", len(stores))
    for number, store in enumerate(stores):
        cases = count * (number + 1) // len(stores) - count * number // len(stores)
        some = cases * (part[0] + 1) // part[1] - cases * part[0] // part[1]
        result = flip_in(store, some, f"{seed}/{number}/{part[0]}", folder / str(number))
        outcome.add(json.loads(result.to_json()) | {"facts": {}})
        outcome.fact("files", outcome.facts.get("files", 0) + result.facts["files"])
    return outcome


def flip_in(store: Path, count: int, seed: str, folder: Path) -> Outcome:
    """Flip ``count`` random bits, one at a time, spread evenly over the files of a store and then over their bits.

    ``lost``: flips that verify didn't find, or attributed to another file. ``silent``: searches of a damaged store with
    other results than before.
    """
    root = folder / "flipped.knnstore"
    shutil.copytree(store, root)
    generator = random.Random(seed)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    before = _neighbours(root)
    outcome = Outcome("flips")
    outcome.fact("files", len(files))
    generator.shuffle(files)
    for number in range(count):
        path = files[number] if number < len(files) else generator.choice(files)
        bit = generator.randrange(8 * path.stat().st_size)
        _flip(path, bit)
        _verify(outcome, root, path, bit)
        if number % _SEARCHES == 0:
            _search(outcome, root, path, bit, before)
        _flip(path, bit)
    if not verify(root).intact:
        raise AssertionError("the flips were not reverted")
    return outcome


def _verify(outcome: Outcome, root: Path, path: Path, bit: int) -> None:
    name = path.relative_to(root).as_posix()
    report = verify(root)
    outcome.tried += 1
    blamed = {damage.path: damage for damage in report.damages}
    if name not in blamed:
        outcome.lose(f"bit {bit} of {name} was not found (blamed: {sorted(blamed)})")
        return
    damage = blamed[name]
    outcome.count("rebuildable", damage.rebuildable)
    outcome.count("others blamed", len(blamed) > 1)
    if "/c/" in name and damage.rows is None:
        outcome.lose(f"bit {bit} of {name} was found without its rows")


def _search(outcome: Outcome, root: Path, path: Path, bit: int, before: list[Any]) -> None:
    try:
        after = _neighbours(root)
    except (CorruptStoreError, MismatchError):
        outcome.count("searches refused", 1)
        return
    outcome.count("searches that didn't read it", 1)
    if any((old != new).any() for old, new in zip(before, after, strict=True)):
        outcome.silent += 1
        outcome.told.append(f"bit {bit} of {path.relative_to(root)} silently changed the neighbours")


def _neighbours(root: Path) -> list[Any]:
    """Return the results of every search method: values, rows and distances, documents, exact matches."""
    store = Datastore(root)
    searcher = Searcher(store)
    queries = store.segments[0].queries()[:4]
    results: list[Any] = []
    for method in ("lists", "quantised", "exact"):
        result = searcher.search(queries, 8, 8, method=method, rows=True)
        assert result.rows is not None
        results += [result.values, result.rows, result.distances]
        passages = Passages(store, str)
        results.append(np.array([str(passages.document(int(n))) for n in passages.documents(result.rows[0])]))
    if suffixes := open_suffixes(store):
        ids = store.segments[0].values(0, 12).astype(np.int64)
        context = contexts_of(ids, np.zeros(12, np.int64), np.arange(12), suffixes.packing.nothing)
        results += [matches.followers for matches in suffixes.matches(context)]
    load_tuned(store)
    return results


def _flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
