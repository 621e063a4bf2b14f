"""Plan how much to do at a time: integers in, a plan out, no I/O.

Every function is arithmetic on rows, widths and bytes, so that the needs of a job are known, and refused with both
numbers, before it starts. What determines the bytes of an index (lists, code bytes, sample) doesn't depend on the
memory, unless the usual plan wouldn't fit; the memory only decides how much is held at a time.
"""

import math
import re
from dataclasses import dataclass

from knnstore.errors import UsageError
from knnstore.sizes import format_need, require_memory
from knnstore.wording import option

FEWEST_LISTS = 256
"""Lack of memory never reduces the number of lists below this."""
_DIMENSIONS_A_BYTE = 16  # at most: recall is too low with shorter codes
POINTS_A_LIST = 39  # with fewer training points per centroid, k-means fits noise (faiss warns at the same number)
_LARGEST_NLIST = 2**20
_SMALLEST_SAMPLE = 10_000
UNSEEN_STRETCHES = 16
"""Number of evenly spread stretches in which keys of a training sample are held back."""
_LONGEST_STRETCH = 256
_MOST_PQ_BYTES = 64
_FEWEST_PROBES = 32
_CANDIDATES = 8 * 1024  # keys scanned per query; with fewer, recall@1024 drops

BASE_BYTES = 400_000_000  # resident memory of a process that uses torch, faiss, zarr and pyarrow
SCRATCH_BYTES = 128_000_000  # float32 blocks of a task: decoded keys, residuals, distances
LOOKUP_RERANK = 4  # candidates from the codes, as a multiple of k, whose keys are read
_RUN_BYTES = 2**29  # maximum size of a run, so that little is lost with an unfinished one
_MOST_RUNS = 64  # with more runs, the merge would read too little at a time


@dataclass(frozen=True, slots=True)
class IndexSize:
    """What determines the size of an index: rows of all segments, dimension, bytes per key, value and row number."""

    rows: int
    dimension: int
    key_bytes: int
    value_bytes: int
    row_bytes: int
    chunk_rows: int
    chunks: int

    def entry_bytes(self, pq_bytes: int) -> int:
        """Return the bytes on disk of one key with its code, value and row number."""
        return self.key_bytes + pq_bytes + self.value_bytes + self.row_bytes


@dataclass(frozen=True, slots=True)
class IndexResources:
    """Resources of a build: bytes on disk, final and temporary, peak memory and chunks per run."""

    disk_bytes: int
    temporary_bytes: int
    peak_bytes: int
    run_chunks: int


@dataclass(frozen=True, slots=True)
class LookupRates:
    """Seconds per exact distance of one query on one thread: per key, and per dimension of a key."""

    key: float
    dimension: float


# Measured on one core of an AMD EPYC (Zen 4) by `tools/bench.py lookup`, at 64 to 2,048 dimensions.
NATIVE_LOOKUP = LookupRates(key=5e-9, dimension=0.1e-9)
REFERENCE_LOOKUP = LookupRates(key=20e-9, dimension=1.0e-9)
_CODES_KEY, _CODES_BYTE = 150e-9, 6.5e-9  # a distance from a PQ code: per key, and per byte of its code
_CANDIDATE_KEY, _CANDIDATE_DIMENSION = 0.2e-6, 3.5e-9  # the exact distance of a candidate
_DISK_BYTE, _DISK_READ = 1.75e-9, 32e-6  # a cloud disk: 0.57 GB/s in sequence, 31,000 random reads per second


@dataclass(frozen=True, slots=True)
class Lookup:
    """How one query is searched: with exact distances of all keys in its lists if ``rerank`` is 0, else from the codes.

    ``seconds``: expected time on one thread. ``bytes``: bytes read.
    """

    rerank: int
    seconds: float
    bytes: int


def choose_lookup(
    keys: int, *, dimension: int, key_bytes: int, pq_bytes: int, k: int, rates: LookupRates, cold: float
) -> Lookup:
    """Return the faster way to search ``keys`` keys for one query: all of them, or their codes and the best candidates.

    The choice depends on the index and the engine, not on a timing, so that a query is always searched alike.

    Args:
        keys: number of keys in the probed lists.
        dimension: dimensions of a key.
        key_bytes: bytes per key as stored.
        pq_bytes: bytes per PQ code.
        k: number of neighbours.
        rates: rates of the engine that computes exact distances.
        cold: share of the keys, 0 to 1, that doesn't fit in memory and is read from disk.
    """
    candidates = min(keys, LOOKUP_RERANK * k)
    exact = Lookup(
        rerank=0,
        seconds=keys * (rates.key + rates.dimension * dimension + cold * _DISK_BYTE * key_bytes),
        bytes=keys * key_bytes,
    )
    read = max(_DISK_READ, _DISK_BYTE * key_bytes)
    coded = Lookup(
        rerank=LOOKUP_RERANK,
        seconds=keys * (_CODES_KEY + (_CODES_BYTE + cold * _DISK_BYTE) * pq_bytes)
        + candidates * (_CANDIDATE_KEY + _CANDIDATE_DIMENSION * dimension + cold * read),
        bytes=keys * pq_bytes + candidates * key_bytes,
    )
    return min(exact, coded, key=lambda way: way.seconds)


@dataclass(frozen=True, slots=True)
class BuildRates:
    """Cost of a build on one machine, in seconds.

    ``start``: loading the libraries. ``train``: the whole training. ``fill``, ``merge``, ``check``: per key, in one
    process; ``cpu``: CPU time of ``fill`` and ``merge``, per key. ``check_once``: fixed cost of the check.
    """

    start: float
    train: float
    fill: float
    merge: float
    cpu: float
    check: float
    check_once: float


@dataclass(frozen=True, slots=True)
class BuildSeconds:
    """Seconds of each stage of a build."""

    start: float
    train: float
    fill: float
    merge: float
    check: float

    @property
    def total(self) -> float:
        """Return the total."""
        return self.start + self.train + self.fill + self.merge + self.check


def forecast(rates: BuildRates, rows: int, *, trains: bool, workers: int, cores: int) -> BuildSeconds:
    """Return the seconds of a build of ``rows`` keys in ``workers`` single-threaded processes (0: in this process)."""
    share = 1.0
    if workers:
        waiting = max(0.0, rates.fill + rates.merge - rates.cpu)
        share = (rates.cpu / min(workers, cores) + waiting) / (rates.fill + rates.merge)
    return BuildSeconds(
        start=rates.start,
        train=rates.train if trains else 0.0,
        fill=rates.fill * rows * share,
        merge=rates.merge * rows * share,
        check=rates.check * rows + rates.check_once,
    )


def choose_nlist(rows: int, asked: int | None) -> tuple[int, str | None]:
    """Return the number of inverted lists, and a message if it is fewer than requested.

    The default is the power of two nearest to 4√rows: 4096 at 10^6 keys, 65,536 at 2 · 10^8.
    """
    if asked is not None and not 1 <= asked <= _LARGEST_NLIST:
        remedy = f"give a number from 1 to {_LARGEST_NLIST}, or omit it"
        raise UsageError.about("nlist", asked, limit=_LARGEST_NLIST, remedy=remedy)
    trainable = max(1, rows // POINTS_A_LIST)
    if asked is None:
        best = 2 ** round(math.log2(4 * math.sqrt(rows)))
        return min(best, 2 ** int(math.log2(trainable)), _LARGEST_NLIST), None
    if asked <= trainable:
        return asked, None
    return trainable, f"{trainable:,} lists instead of {asked:,}: training needs {POINTS_A_LIST} keys per list"


def choose_nprobe(rows: int, nlist: int, asked: int | None) -> int:
    """Return the lists searched per query by default: 32, or enough to hold eight times 1024 keys."""
    if asked is not None and asked < 1:
        raise UsageError.about("nprobe", asked, limit=1, remedy="give at least 1")
    return min(nlist, asked or max(_FEWEST_PROBES, -(-_CANDIDATES * nlist // rows)))


def choose_cells(nlist: int) -> int:
    """Return the cells of the two-level k-means: √nlist, or 1 if a single level is fast enough."""
    return round(math.sqrt(nlist)) if nlist >= 256 else 1


def choose_pq_bytes(dimension: int, asked: int | None) -> int:
    """Return the bytes per PQ code, a divisor of the dimension; by default a quarter of it, at most 64."""
    divisors = [number for number in range(1, dimension + 1) if dimension % number == 0]
    if asked is None:
        return max(number for number in divisors if number <= max(1, min(dimension // 4, _MOST_PQ_BYTES)))
    if asked not in divisors:
        near = [number for number in divisors if number < asked][-1:] + [n for n in divisors if n > asked][:1]
        fault = f"doesn't divide the keys' {dimension} dimensions"
        remedy = f"give {' or '.join(map(str, near))}, or omit it"
        raise UsageError.about("pq_bytes", asked, fault, limit=divisors, remedy=remedy)
    return asked


def shorter_codes(dimension: int, pq_bytes: int) -> int | None:
    """Return the bytes of the next shorter PQ code that still distinguishes keys; None if there is none."""
    fewest = max(1, dimension // _DIMENSIONS_A_BYTE)
    return next((size for size in range(pq_bytes - 1, fewest - 1, -1) if dimension % size == 0), None)


def parse_rotation(asked: str, dimension: int) -> tuple[str, int]:
    """Return the kind and the number of dimensions kept of ``PCA64`` or ``OPQ``, as in faiss's factory strings.

    Raises UsageError for other text and for more dimensions than there are.
    """
    match = re.fullmatch(r"(PCA|OPQ)([1-9]\d{0,5})?", asked)
    kept = int(match[2] or dimension) if match else 0
    if match is None or kept > dimension:
        remedy = f"give OPQ or PCA and the number of dimensions to keep, at most {dimension}: OPQ, PCA64, OPQ128"
        raise UsageError.about("rotation", asked, limit=dimension, remedy=remedy)
    return match[1], kept


def choose_train_rows(rows: int, nlist: int, asked: int | None) -> int:
    """Return the keys of the training sample: 40 per list and at least 10,000, or all keys if there are fewer."""
    if asked is None:
        return min(rows, max(_SMALLEST_SAMPLE, (POINTS_A_LIST + 1) * nlist))
    if asked < min(rows, nlist):
        least = POINTS_A_LIST * nlist
        fault, remedy = f"is too few for {nlist} lists", f"give at least {least}"
        raise UsageError.about("train_sample", asked, fault, limit=least, remedy=remedy)
    return min(rows, asked)


def unseen_rows(train_rows: int, nlist: int) -> int:
    """Return how many keys of a training sample are held back: a sixteenth, in stretches of equal length.

    At most 4,096, which is enough for a mean, and 0 of fewer than 256 keys; every list keeps a key to train on.
    """
    length = min(train_rows // UNSEEN_STRETCHES**2, _LONGEST_STRETCH, (train_rows - nlist) // UNSEEN_STRETCHES)
    return UNSEEN_STRETCHES * length


def plan_resources(
    size: IndexSize, *, nlist: int, pq_bytes: int, train_rows: int, memory: int, workers: int
) -> IndexResources:
    """Return the resources of a build in ``workers`` worker processes (0: in this process).

    Raises ResourceError, with the memory needed, if ``memory`` bytes for all processes aren't enough.
    """
    tasks, processes = max(1, workers), workers + 1
    base = processes * BASE_BYTES
    quantiser = (2 * nlist + 256) * size.dimension * 4
    train = train_rows * (size.key_bytes + 8) + 3 * nlist * size.dimension * 4 + SCRATCH_BYTES
    chunk = size.chunk_rows * size.entry_bytes(pq_bytes)
    sorting = size.chunk_rows * 40  # list, row, order and hash per row
    fill = quantiser + chunk + sorting + size.chunk_rows * size.key_bytes + SCRATCH_BYTES
    merge = 4 * chunk + sorting
    smallest = base + max(train, tasks * max(fill, merge))
    what = f"training on {train_rows} keys" if train + base == smallest else f"{tasks} tasks of one chunk each"
    remedy = (
        f"{what} and {processes} processes with their libraries need {format_need(smallest)}; give that much, or "
        f"fewer {option('workers')}, or a smaller {option('nlist')}"
    )
    require_memory(memory, smallest, remedy)
    extra = chunk + sorting
    affordable = 1 + ((memory - base) // tasks - fill) // extra
    wanted = max(1, _RUN_BYTES // chunk, math.ceil(size.chunks / _MOST_RUNS))
    run_chunks = max(1, min(affordable, wanted, size.chunks))
    peak = base + max(train, tasks * max(fill + (run_chunks - 1) * extra, merge))
    entries = size.rows * size.entry_bytes(pq_bytes)
    # the last chunk of an array is stored in full
    padding = max(0, size.chunks * size.chunk_rows - size.rows) * size.entry_bytes(pq_bytes)
    disk = entries + padding + (2 * nlist + 256) * size.dimension * 4 + 8 * nlist
    runs = math.ceil(size.chunks / run_chunks)
    return IndexResources(disk, entries + runs * 8 * (nlist + 1), peak, run_chunks)
