"""Estimates of ``knnstore index --dry-run`` compared with the actual build: time, memory, disk.

Both run as on the command line, one after the other, on the same keys: a copy of ``--store``, or synthetic keys of
wiki-lm's width at two sizes (``--quick``: one). Time is wall time including the import of libraries, memory the peak
over all processes, and disk the size of the index and the largest size of its folder during the build.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from make_keys import make_store

from benchmarks.measuring import Result, Settings
from benchmarks.memory import peak
from knnstore.datastore.manifest import load_manifest, save_manifest
from knnstore.datastore.store import Datastore, store_path

_BETWEEN_SAMPLES = 0.5  # seconds


def run(settings: Settings, work: Path) -> Result:
    if settings.store is not None:
        stores = [unindexed(store_path(str(settings.store)), work)]
    else:
        sizes = (settings.rows or 100_000,) if settings.quick else (300_000, settings.rows or 3_000_000)
        stores = [make_store(work / f"keys-{rows}", rows, like=settings.model).root for rows in sizes]
    table: list[tuple[Any, ...]] = []
    ratios: dict[str, float] = {}
    rows = 0
    for root in stores:
        rows = Datastore(root).rows
        promised, measured = promise(settings, root), build(settings, work, root)
        for what, value in promised.items():
            table.append((f"{rows:,} keys, {what}", value, measured[what], round(measured[what] / value, 3)))
            ratios[f"{what.split(',')[0].replace(' ', '_')}_vs_promise"] = round(measured[what] / value, 4)
    about = {"keys": rows, "memory": settings.memory}
    return Result("plan", about, ("of", "estimated", "measured", "measured ÷ estimated"), table, ratios)


def unindexed(store: Path, work: Path) -> Path:
    """Copy a store without its index."""
    root = work / store.name
    shutil.copytree(store, root, ignore=lambda folder, names: ["index"] if Path(folder) == store else [])
    manifest = load_manifest(root)
    save_manifest(root, replace(manifest, index=None, indexed=()))
    return root


def promise(settings: Settings, root: Path) -> dict[str, float]:
    """Return the estimates of the dry run: seconds, and megabytes of memory, of the index and of its folder at most."""
    command = [sys.executable, "-m", "knnstore", "index", "--store", str(root), "--dry-run", "--json", "--quiet"]
    command += ["--memory", str(settings.memory)]
    forecast = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    resources = forecast["resources"]
    return {
        "time, s": round(forecast["total_seconds"], 1),
        "memory, MB": round(resources["peak_bytes"] / 1e6, 2),
        "disk, MB": round(resources["disk_bytes"] / 1e6, 2),
        "most disk, MB": round((resources["disk_bytes"] + resources["temporary_bytes"]) / 1e6, 2),
    }


def build(settings: Settings, work: Path, root: Path) -> dict[str, float]:
    """Return the same figures of a real build."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(_BETWEEN_SAMPLES):
            most = max(most, size_of(root / "index"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        memory = peak(settings, work, "index", "--store", root)
        seconds = time.perf_counter() - started
    finally:
        done.set()
        watcher.join()
    size = size_of(root / "index")
    return {
        "time, s": round(seconds, 1),
        "memory, MB": round(memory / 1e6, 2),
        "disk, MB": round(size / 1e6, 2),
        "most disk, MB": round(max(most, size) / 1e6, 2),
    }


def size_of(folder: Path) -> int:
    """Return the bytes of the files below a folder; files may disappear in the meantime."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
