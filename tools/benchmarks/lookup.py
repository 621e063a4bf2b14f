"""Latency of single queries, as in generation: warm and cold, compared with faiss on disk and in RAM.

    python tools/bench.py lookup                  1M keys of 256 dimensions, and 10M of 64
    python tools/bench.py lookup --quick          65,536 of 256
    python tools/bench.py lookup --rows N         N of 256; --store PATH: an indexed store

k = 8, 64 and 1024, nprobe 32; contestants alternate for each query. knnstore uses the method that its planner chooses
and returns row numbers; *other way* is the method not chosen: exact distances of all keys in the probed lists, or a
scan of their PQ codes with exact distances of the best candidates. faiss scans the same PQ codes, in RAM or by
``OnDiskInvertedLists``, without re-ranking.
*Warm*: everything is in the page cache, and each query was searched before. *Cold*: before each query the files are
dropped from the page cache and the index is opened again, so that every block is verified too. Opening isn't counted:
it maps the files and reads the checksums of their blocks, as for ``generate``. The kernel counts the bytes that the
disk reads; the rate of the disk is that of a large file, read cold. *Bare reads* only read the same places of the same
files, requested all at once: the disk's part of a cold query. *One read* reads as many contiguous bytes of the keys,
which no layout can beat.
"""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from make_keys import ClusteredKeys, make_store

from benchmarks.faiss_baselines import empty_index, plan_of
from benchmarks.measuring import Result, Settings
from knnstore.arrays import Float32
from knnstore.datastore.arrays import chunk_file
from knnstore.datastore.block_sums import BLOCK_BYTES
from knnstore.datastore.store import Datastore, store_path
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.planning import LOOKUP_RERANK
from knnstore.scheduling import Job

NEIGHBOURS, NPROBE = (8, 64, 1024), 32
COLUMNS = ("keys", "d", "k", "contestant", "state", "median ms", "p95 ms", "÷ faiss on disk", "read MB")
_LARGE = 2**28  # size in bytes of the file that measures the disk's rate
Search = Callable[[Float32], Any]
Times = dict[str, list[float]]
Files = dict[Path, int]  # descriptors of open files
Read = tuple[int, list[bytearray], int]


def run(settings: Settings, work: Path) -> Result:
    shapes = [(65_536, 256)] if settings.quick else [(1_000_000, 256), (10_000_000, 64)]
    if settings.rows is not None:
        shapes = [(settings.rows, 256)]
    table: list[tuple[Any, ...]] = []
    ratios: dict[str, float] = {}
    rate = disk_rate(work)
    stores = (
        [Datastore(store_path(str(settings.store)))] if settings.store else (_made(settings, work, *s) for s in shapes)
    )
    for store in stores:
        rows, shape_ratios = measured(settings, store, work, rate)
        table += rows
        ratios |= shape_ratios
    about = {"nprobe": NPROBE, "disk MB/s": round(rate / 1e6)}
    return Result("lookup", about, COLUMNS, table, ratios)


def _made(settings: Settings, work: Path, rows: int, dimension: int) -> Datastore:
    store = make_store(work / f"keys-{rows}", rows, dimension=dimension)
    build_index(store, IndexOptions(), Job(memory=settings.memory))
    return Datastore(store.root)


def measured(
    settings: Settings, store: Datastore, work: Path, rate: float
) -> tuple[list[tuple[Any, ...]], dict[str, float]]:
    """Return the rows of the table and the ratios of one store."""
    dimension = store.segments[0].dimension
    queries = ClusteredKeys(dimension).queries(2, settings.size(settings.queries, quick=100, full=300))
    few = queries[: settings.size(None, quick=10, full=40)]
    file = on_disk(store, work)
    rounds = settings.size(settings.rounds, quick=2, full=3)
    rows: list[tuple[Any, ...]] = []
    ratios: dict[str, float] = {}
    for k in NEIGHBOURS:
        warm = warm_times(store, file, queries, k, rounds)
        cold, read = cold_times(store, file, few, k)
        rows += [(store.rows, dimension, k, *row) for row in _rows(warm, cold, read)]
        ratios |= {f"{name}_{store.rows}x{dimension}_k{k}": round(ratio, 4) for name, ratio in _ratios(warm, cold)}
        ratios |= {
            f"{name}_{store.rows}x{dimension}_k{k}": round(statistics.median(cold[of]) / (read[of] / rate), 4)
            for name, of in (("cold_vs_sequential_read", "knnstore"), ("one_read_vs_sequential_read", "one read"))
        }
    return rows, ratios


def _rows(warm: Times, cold: Times, read: dict[str, float]) -> Iterator[tuple[Any, ...]]:
    for state, times in (("warm", warm), ("cold", cold)):
        base = statistics.median(times["faiss on disk"])
        for name, seconds in times.items():
            median, late = statistics.median(seconds), float(np.quantile(seconds, 0.95))
            megabytes = round(read[name] / 1e6, 2) if state == "cold" else 0.0
            yield name, state, round(median * 1e3, 3), round(late * 1e3, 3), round(median / base, 3), megabytes


def _ratios(warm: Times, cold: Times) -> Iterator[tuple[str, float]]:
    """Yield name and ratio of medians of every pair that is compared."""
    for state, times, bases in (
        ("warm", warm, ("faiss on disk", "faiss in RAM", "other way")),
        ("cold", cold, ("faiss on disk", "bare reads", "other way")),
    ):
        for base in bases:
            ratio = statistics.median(times["knnstore"]) / statistics.median(times[base])
            yield f"{state}_vs_{base.replace(' ', '_')}", ratio


def both_ways(searcher: Searcher, k: int, nprobe: int) -> dict[str, Search]:
    """Return the planner's search method for one query, and the other one."""
    exact = searcher.lookup(k, nprobe).rerank == 0
    other: dict[str, Any] = {"method": "quantised", "rerank": LOOKUP_RERANK} if exact else {"method": "lists"}
    return {
        "knnstore": lambda query: searcher.search(query, k, nprobe, method="auto", rows=True),
        "other way": lambda query: searcher.search(query, k, nprobe, rows=True, **other),
    }


def warm_times(store: Datastore, file: Path, queries: Float32, k: int, rounds: int) -> Times:
    """Return the seconds of each query, with alternating contestants, without the first round for warm-up."""
    searcher, ram = Searcher(store), filled_from_lists(store)
    disk: Any = faiss.read_index(str(file))
    nprobe = min(NPROBE, searcher.plan.nlist)
    disk.nprobe = ram.nprobe = nprobe
    contestants: dict[str, Search] = {
        **both_ways(searcher, k, nprobe),
        "faiss on disk": lambda query: disk.search(query, k),
        "faiss in RAM": lambda query: ram.search(query, k),
    }
    times: Times = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for line in range(len(queries)):
            for name, search in contestants.items():
                seconds = seconds_of(search, queries[line : line + 1])
                if number:
                    times[name].append(seconds)
    return times


def cold_times(store: Datastore, file: Path, queries: Float32, k: int) -> tuple[Times, dict[str, float]]:
    """Return the seconds of each query, and the median bytes that the disk read for it."""
    lists = [path for path in store.root.joinpath("index").rglob("*") if path.is_file()]
    faiss_files = [file, file.with_suffix(".ivfdata")]

    def opened_searcher(way: str) -> Search:
        searcher = Searcher(store)
        nprobe = min(NPROBE, searcher.plan.nlist)
        searcher.probe(queries[:1], nprobe)  # loads what it keeps in memory
        searcher.prepare()
        drop(lists)
        return both_ways(searcher, k, nprobe)[way]

    def opened_faiss() -> Search:
        index: Any = faiss.read_index(str(file))
        index.nprobe = min(NPROBE, index.nlist)
        index.quantizer.search(queries[:1], 1)
        drop(faiss_files)
        return lambda query: index.search(query, k)

    def opened_files(of_queries: Iterator[list[Read]]) -> Search:
        drop(lists)
        return lambda query: [os.preadv(*read) for read in asked_for(next(of_queries))]

    files: Files = {}
    reads = [reads_of(store, queries[line : line + 1], files) for line in range(len(queries))]
    single = [[one_read_like(read, number)] for number, read in enumerate(reads)]
    openers: dict[str, Callable[[], Search]] = {
        "knnstore": partial(opened_searcher, "knnstore"),
        "other way": partial(opened_searcher, "other way"),
        "faiss on disk": opened_faiss,
        "bare reads": partial(opened_files, iter(reads)),
        "one read": partial(opened_files, iter(single)),
    }
    times: Times = {name: [] for name in openers}
    read: Times = {name: [] for name in openers}
    for line in range(len(queries)):
        for name, opener in openers.items():
            gc.collect()  # maps of the previous contestant would keep their pages
            search = opener()
            before = bytes_read()
            times[name].append(seconds_of(search, queries[line : line + 1]))
            read[name].append(bytes_read() - before)
            del search
    for descriptor in files.values():
        os.close(descriptor)
    return times, {name: statistics.median(of) for name, of in read.items()}


def reads_of(store: Datastore, query: Float32, files: Files) -> list[Read]:
    """Return the blocks of the lists that a query probes, keys first: open file, buffer, place in the file."""
    searcher = Searcher(store)
    numbers = np.sort(searcher.probe(query, min(NPROBE, searcher.plan.nlist))[0])
    reads = []
    for part in searcher.parts:
        begins, ends = part.offsets[numbers], part.offsets[numbers + 1]
        some = ends > begins
        for array in (part.keys, part.values, part.rows):
            pieces = array.locate(begins[some], ends[some])
            sizes = pieces.counts * array.dtype.itemsize * math.prod(array.shape[1:])
            for chunk, start, size in np.stack([pieces.chunks, pieces.starts, sizes], axis=1).tolist():
                begin = start // BLOCK_BYTES * BLOCK_BYTES
                end = min(-(-(start + size) // BLOCK_BYTES) * BLOCK_BYTES, array.chunk_bytes)
                file = chunk_file(array.path, chunk, len(array.shape))
                if file not in files:
                    files[file] = os.open(file, os.O_RDONLY)
                    os.posix_fadvise(files[file], 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
                reads.append((files[file], [bytearray(end - begin)], begin))
    return reads


def one_read_like(reads: list[Read], number: int) -> Read:
    """Return a contiguous read of as many bytes as these reads, or as the first one's file, from some block on."""
    file = reads[0][0]
    blocks = {(of, place) for of, room, begin in reads for place in range(begin, begin + len(room[0]), BLOCK_BYTES)}
    size, total = os.fstat(file).st_size, len(blocks) * BLOCK_BYTES
    places = max(0, size - total) // BLOCK_BYTES + 1
    return file, [bytearray(min(total, size))], number * 7919 % places * BLOCK_BYTES


def asked_for(reads: list[Read]) -> list[Read]:
    """Request all reads from the kernel, and return them."""
    for file, room, begin in reads:
        os.posix_fadvise(file, begin, len(room[0]), os.POSIX_FADV_WILLNEED)
    return reads


def seconds_of(search: Search, query: Float32) -> float:
    started = time.perf_counter()
    search(query)
    return time.perf_counter() - started


def drop(paths: Iterable[Path]) -> None:
    """Drop files that no process has mapped from the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages can't be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def bytes_read() -> int:
    """Return the bytes that the disk has read for this process."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def disk_rate(work: Path) -> float:
    """Return the bytes per second of a cold sequential read of a large file."""
    path = work / "large"
    path.write_bytes(os.urandom(2**20) * (_LARGE // 2**20))
    drop([path])
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(2**23):
            pass
    seconds = time.perf_counter() - started
    path.unlink()
    return _LARGE / seconds


def filled_from_lists(store: Datastore) -> Any:
    """Return faiss's index in RAM with the codes and rows of the store's lists."""
    index, searcher = empty_index(store), Searcher(store)
    for number in range(plan_of(store).nlist):
        for part in searcher.parts:
            begin, end = part.bounds(number)
            if begin == end:
                continue
            ids, codes = part.store_rows(begin, end), np.ascontiguousarray(part.codes.rows(begin, end))
            index.invlists.add_entries(number, end - begin, faiss.swig_ptr(ids), faiss.swig_ptr(codes))
    index.ntotal = store.rows
    return index


def on_disk(store: Datastore, work: Path) -> Path:
    """Write faiss's index with its lists in a separate file, as in its demo of indexes on disk."""
    file = work / f"faiss-{store.rows}.index"
    source, index = filled_from_lists(store), empty_index(store)
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(file.with_suffix(".ivfdata")))
    vector: Any = faiss.InvertedListsPtrVector()  # type: ignore[attr-defined]
    vector.push_back(source.invlists)
    lists.merge_from_multiple(vector.data(), 1, False, False)
    index.replace_invlists(lists)
    index.ntotal = store.rows
    faiss.write_index(index, str(file))
    return file
