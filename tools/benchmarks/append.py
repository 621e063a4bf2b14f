"""Cost of changing a store relative to rebuilding it: CPU seconds of this process, by the share of new text.

A store of ``--rows`` tokens is ingested and indexed. Then the next 5 %, 10 % and 20 % of text are added, each to a copy
of it, and the same stores are built from scratch. Also, without the LM: removing a tenth of the documents and
compacting the largest store. CPU seconds are used because the machine may do other work; the LM is loaded before.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.material import text_folder
from benchmarks.measuring import Result, Settings
from knnstore.datastore.selection import origins_of, sampled
from knnstore.datastore.store import Datastore
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.remove import remove
from knnstore.scheduling import Job

SHARES = (0.05, 0.1, 0.2)


def run(settings: Settings, work: Path) -> Result:
    tokens = settings.size(settings.rows, quick=10_000, full=400_000)
    shares = SHARES[1:2] if settings.quick else SHARES
    texts = sorted(text_folder(settings, work, round(tokens * (1 + max(shares)))).rglob("*.txt"))
    sizes = [path.stat().st_size for path in texts]
    total = sum(sizes) / (1 + max(shares))
    old = first_files(sizes, total)
    corpus = filled(work / "corpus", texts[:old])
    seconds = cpu_seconds(lambda: made(settings, corpus, work / "old"))
    table = [("make the store", Datastore(work / "old.knnstore").rows, round(seconds, 2), 1.0)]
    ratios: dict[str, float] = {}
    grown = work / "old.knnstore"
    for share in shares:
        number = first_files(sizes, total * (1 + share))
        both = filled(work / f"corpus-{share}", texts[:number], name="corpus")
        grown = work / f"grown-{share}.knnstore"
        shutil.copytree(work / "old.knnstore", grown)
        appended = cpu_seconds(lambda: made(settings, both, grown))  # noqa: B023 - called at once
        rebuilt = cpu_seconds(lambda: made(settings, both, work / f"rebuilt-{share}"))  # noqa: B023
        new = Datastore(grown).rows - Datastore(work / "old.knnstore").rows
        table.append((f"add {share:.0%}", new, round(appended, 2), round(appended / rebuilt, 4)))
        percent = round(100 * share)
        ratios[f"append_{percent}pct_vs_anew"] = round(appended / rebuilt, 4)
        ratios[f"append_{percent}pct_a_key_vs_anew"] = round(appended / new / (rebuilt / Datastore(grown).rows), 4)
    store = Datastore(grown)
    names = [str(document) for document in origins_of(store, sampled(store, 0.1))]
    store.close()
    removal = cpu_seconds(lambda: remove(grown, names))
    gone = Datastore(grown).rows - Datastore(grown).live_rows
    compaction = cpu_seconds(lambda: compact(grown, CompactOptions(), Job(memory=settings.memory)))
    for name, rows, spent in (("remove a tenth", gone, removal), ("compact", Datastore(grown).rows, compaction)):
        table.append((name, rows, round(spent, 2), round(spent / rebuilt, 4)))
    ratios |= {
        "remove_vs_anew": round(removal / rebuilt, 4),
        "compact_vs_anew": round(compaction / rebuilt, 4),
    }
    about = {"keys of the old store": table[0][1], "documents": old}
    return Result("append", about, ("change", "keys", "CPU s", "÷ rebuilding"), table, ratios)


def made(settings: Settings, corpus: Path, store: Path) -> None:
    """Update the store and its index to the corpus."""
    options = IngestOptions((str(corpus),), store=str(store), model=settings.model, holdout=0.0)
    job = Job(memory=settings.memory)
    root = ingest(options, job).store
    build_index(Datastore(root), IndexOptions(), job)


def filled(folder: Path, texts: list[Path], name: str = "") -> Path:
    """Copy these texts to a folder; stores identify them by their digests, so their paths don't matter."""
    folder = folder / name if name else folder
    folder.mkdir(parents=True)
    for number, path in enumerate(texts):
        shutil.copy(path, folder / f"{number:06d}.txt")
    return folder


def first_files(sizes: list[int], wanted: float) -> int:
    """Return how many of the first files have ``wanted`` bytes together."""
    count = held = 0
    while count < len(sizes) and held < wanted:
        held += sizes[count]
        count += 1
    return count


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of ``work()``, over all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started
