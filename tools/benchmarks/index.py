"""Fill the lists, compared with faiss's add in RAM and merge on disk: same keys, quantisers and cores.

Each contestant runs in a separate process, whose peak memory is measured above that of the libraries; knnstore's
includes training and the self-check. keys/s: of knnstore, fill and merge (assign, encode, sort, write, merge, checksum,
fsync); of faiss in RAM, ``IndexIVFPQ.add`` only, with keys decoded before; of faiss on disk, add, ``write_index`` of
each shard and ``merge_ondisk``. Training is shared and not counted.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from make_keys import make_store

from benchmarks.faiss_baselines import empty_index, key_blocks, plan_of, written_shards
from benchmarks.measuring import Measured, Result, Settings, in_own_process, in_turn, rate_rows, ratio
from knnstore.datastore.store import Datastore
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.progress import Reporter
from knnstore.scheduling import Job

DIMENSION = 64


def run(settings: Settings, work: Path) -> Result:
    rows = settings.size(settings.rows, quick=100_000, full=1_000_000)
    rounds = settings.size(settings.rounds, quick=2, full=3)
    root = make_store(work / "keys", rows, dimension=DIMENSION).root
    peaks: dict[str, list[int]] = {}

    def contestant(name: str, function: Callable[..., float], *arguments: object) -> Callable[[], float]:
        def rate() -> float:
            measured: Measured = in_own_process(function, root, *arguments)
            peaks.setdefault(name, []).append(measured.peak_bytes)
            return rows / float(measured.value)

        return rate

    contestants = {
        "knnstore": contestant("knnstore", knnstore_seconds, settings.memory),
        "faiss in RAM": contestant("faiss in RAM", faiss_ram_seconds),
        "faiss on disk": contestant("faiss on disk", faiss_disk_seconds, work),
    }
    rates = in_turn(contestants, rounds)
    peak = {name: statistics.median(values) for name, values in peaks.items()}
    table = [(*row, round(peak[row[0]] / 1e6, 1)) for row in rate_rows(rates, "faiss in RAM")]
    ratios = {
        "fill_vs_faiss_ram": ratio(rates, "knnstore", "faiss in RAM"),
        "fill_vs_faiss_disk": ratio(rates, "knnstore", "faiss on disk"),
        "memory_vs_faiss_ram": round(peak["knnstore"] / peak["faiss in RAM"], 4),
        "memory_vs_faiss_disk": round(peak["knnstore"] / peak["faiss on disk"], 4),
    }
    plan = plan_of(Datastore(root))
    about = {"keys": rows, "d": plan.dimension, "nlist": plan.nlist, "pq bytes": plan.pq_bytes, "rounds": rounds}
    columns = ("contestant", "keys/s", "lowest", "highest", "÷ faiss in RAM", "peak MB")
    return Result("index", about, columns, table, ratios)


class StageClock(Reporter):
    """Measures the seconds of each stage of a job."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def bar(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[float], None]]:
        started = time.perf_counter()
        yield lambda count: None
        self.seconds[stage] = time.perf_counter() - started


def knnstore_seconds(root: Path, memory: int) -> float:
    clock = StageClock()
    build_index(Datastore(root), IndexOptions(overwrite=True), Job(reporter=clock, memory=memory))
    return clock.seconds["fill"] + clock.seconds["merge"]


def faiss_ram_seconds(root: Path) -> float:
    store, seconds = Datastore(root), 0.0
    index = empty_index(store)
    for _, keys in key_blocks(store):
        started = time.perf_counter()
        index.add(keys)
        seconds += time.perf_counter() - started
    return seconds


def faiss_disk_seconds(root: Path, work: Path) -> float:
    import faiss
    from faiss.contrib.ondisk import merge_ondisk

    store = Datastore(root)
    started = time.perf_counter()
    shards = [str(path) for path in written_shards(store, work)]
    index = empty_index(store)
    merge_ondisk(index, shards, str(work / "merged.ivfdata"))
    faiss.write_index(index, str(work / "merged.index"))
    return time.perf_counter() - started
