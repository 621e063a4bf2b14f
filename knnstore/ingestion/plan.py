"""Plan an ingest before it starts."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Any

from knnstore.corpus.formats import PAIR_FORMATS, TEXT_FORMATS
from knnstore.corpus.listing import Listing
from knnstore.corpus.options import ErrorPolicy, ReadOptions
from knnstore.corpus.pairs import DEFAULT_FIELDS
from knnstore.corpus.selection import Selection
from knnstore.corpus.sources import find_pairs, find_sources, local_path, scope
from knnstore.datastore.keycodec import KeyDtype, stored_dtype
from knnstore.datastore.manifest import DECODER, KeyRecipe
from knnstore.datastore.segment import Segment, SegmentPlan
from knnstore.errors import UsageError
from knnstore.lm.spec import LmFacts, default_model, weight_bytes
from knnstore.records import LATER
from knnstore.scheduling import Job
from knnstore.sizes import format_need, require_memory
from knnstore.windows import require_window
from knnstore.wording import option

_LIBRARIES = ("knnstore", "torch", "transformers", "tokenizers", "numpy")
# A chunk is a task: large enough for few files and sequential writes, small enough that a kill costs only seconds.
_CHUNK_BYTES = 2**25
_FEWEST_CHUNK_ROWS, _MOST_CHUNK_ROWS = 2**10, 2**17
# Measured resident memory: of the process that distributes tasks, and of a worker with torch and transformers imported.
_CLIENT_BYTES = 300_000_000
_WORKER_BYTES = 700_000_000
# Measured memory per document: its place in the store, and its description while that is written.
_DOCUMENT_BYTES = 150
# A chunk is in memory three times: the keys, Zarr's copy of them, and the compressed bytes.
_CHUNK_COPIES = 3
# Compressed size of keys by zstd, rounded up from measurements on real ones (0.84 of int8, 0.92 of float16).
_COMPRESSED_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """What to ingest and how. None stands for a default that depends on the LM or the corpus.

    ``holdout``: share of the documents. ``prune``: remove documents from the store that are no longer in the corpus.
    ``readmit``: add documents again that were deliberately removed. ``include``, ``exclude`` and ``follow_links``:
    which files are read, see ``Selection``. ``special_tokens``: whether the spelling of a special token in a document
    is that token rather than ordinary text. ``allow_mismatch``: add keys of another LM, or of other windows, to the
    existing keys. ``task`` seq2seq: the corpus consists of pairs of texts; ``source`` and ``target`` are parallel
    files, and ``source_field`` and ``target_field`` are the fields of the two in the records of ``corpus``.
    """

    corpus: tuple[str, ...] = ()
    task: str = "causal"
    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    source_field: str = DEFAULT_FIELDS[0]
    target_field: str = DEFAULT_FIELDS[1]
    store: str | None = None
    model: str | None = None
    text_field: str = "text"
    errors: ErrorPolicy = "strict"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    context: int | None = None
    stride: int | None = None
    key: str = "ffn-input"
    key_dtype: KeyDtype = "int8"
    holdout: float = 0.01
    dtype: str = "auto"
    device: str = "auto"
    overwrite: bool = False
    prune: bool = False
    readmit: bool = False
    allow_mismatch: bool = False
    chunk_rows: int | None = None
    special_tokens: bool = False

    def __post_init__(self) -> None:
        if self.task not in ("causal", "seq2seq"):
            tasks = ("causal", "seq2seq")
            raise UsageError.about("task", self.task, f"is none of {', '.join(tasks)}", limit=tasks, quoted=True)
        if self.task == "causal" and (self.source or self.target):
            raise UsageError(
                f"{option('source')} and {option('target')} are parallel files for an encoder-decoder model: add "
                f"{option('task', 'seq2seq')}"
            )
        if not (self.named or self.source):
            sides, corpus = f"{option('source', 'FILE')} {option('target', 'FILE')}", option("corpus", "PATH")
            pairs = f"{sides}, two parallel files, or {corpus}, pairs in .tsv, .jsonl or .parquet"
            raise UsageError(f"no corpus: give {pairs if self.pairs else f'{corpus}, a folder or files of text'}")
        self.selection  # noqa: B018 - raises for patterns that can't be used
        if self.pairs and self.stride is not None:
            remedy = "omit it, because a pair of texts is one window"
            raise UsageError.about("stride", self.stride, remedy=remedy)
        if not 0 <= self.holdout < 1:
            fault, remedy = "is not a share between 0 and 1", "0.01 holds out one in 100"
            raise UsageError.about("holdout", self.holdout, fault, limit=1, remedy=remedy)

    @property
    def pairs(self) -> tuple[str, str] | None:
        """Return the fields of source and target for a corpus of pairs, else None."""
        return (self.source_field, self.target_field) if self.task == "seq2seq" else None

    @property
    def named(self) -> tuple[str, ...]:
        """Return the files and folders that name the documents; of parallel files, the target side."""
        return tuple(map(local_path, (*self.corpus, *self.target)))

    @property
    def layer(self) -> str:
        """Return the store's name of the layer whose activations are the keys."""
        return f"{DECODER if self.pairs else ''}{self.key}"

    @property
    def reading(self) -> ReadOptions:
        """Return how the corpus is read."""
        return ReadOptions(text_field=self.text_field, errors=self.errors, pairs=self.pairs)

    @property
    def selection(self) -> Selection:
        """Return which files of the corpus are read."""
        return Selection(self.include, self.exclude, self.follow_links)

    def files(self) -> Listing:
        """Return the files of the corpus. Raises CorpusError if there are none."""
        if self.pairs:
            return find_pairs(self.corpus, self.source, self.target, self.selection, self.pairs)
        return find_sources(self.corpus, self.selection, [self.text_field])

    def scope(self) -> Callable[[str], bool]:
        """Return a function that tells whether a path belongs to the corpus, so that a missing document is gone."""
        return scope(self.named, self.selection, PAIR_FORMATS if self.pairs else TEXT_FORMATS)


def segment_plan(options: IngestOptions, facts: LmFacts, sources: str) -> SegmentPlan:
    """Return the plan of a segment; ``sources`` is the digest of the files of the corpus.

    Raises UsageError for windows that are too long for the LM.
    """
    context = options.context or facts.default_context
    stride = context if options.pairs else options.stride or max(1, context // 2)
    require_window(context, stride, longest=facts.longest_context, model=facts.identity.name)
    return SegmentPlan(
        model=facts.identity,
        key=KeyRecipe(facts.layer, facts.dimension, context, stride),
        key_dtype=options.key_dtype,
        chunk_rows=options.chunk_rows or chunk_rows(facts.dimension, options.key_dtype),
        sources=sources,
        text_field=options.text_field if options.pairs is None else "\t".join(options.pairs),
        errors=options.errors,
        holdout=float(options.holdout),  # 0 and 0.0 are the same plan but different JSON
        compute=f"{facts.dtype} on {facts.device.split(':')[0]}",
        versions={name: version(name) for name in _LIBRARIES},
        distinct=True,
        special_tokens=options.special_tokens,
    )


def older_plan(plan: SegmentPlan) -> SegmentPlan:
    """Return the plan as older versions wrote it, without the fields that were added later."""
    later: dict[str, Any] = {field.name: None for field in fields(plan) if field.metadata == LATER}
    return replace(plan, **later)


def chunk_rows(dimension: int, key_dtype: KeyDtype) -> int:
    """Return the rows per chunk of keys: a power of two with about 32 MiB, at most 131,072."""
    rows = _CHUNK_BYTES // (dimension * stored_dtype(key_dtype).itemsize)
    return min(max(1 << rows.bit_length() - 1, _FEWEST_CHUNK_ROWS), _MOST_CHUNK_ROWS)


def choose_workers(options: IngestOptions, memory: int, cores: int) -> int:
    """Return the number of worker processes: one per core, or fewer if the memory doesn't suffice.

    Processes with few threads lose no time waiting for each other; only a large LM benefits from many threads.
    """
    weights = weight_bytes(options.model or default_model())
    # files usually hold two bytes per parameter, and a worker may need four
    affordable = (memory - _CLIENT_BYTES) // (_WORKER_BYTES + 2 * weights + _CHUNK_COPIES * _CHUNK_BYTES)
    return int(min(max(1, affordable), cores))


def check_memory(options: IngestOptions, facts: LmFacts, plan: SegmentPlan, files: int, job: Job) -> None:
    """Raise ResourceError if a run over this number of files can't stay within the memory limit."""
    chunk = plan.chunk_rows * facts.dimension * stored_dtype(options.key_dtype).itemsize
    weights = facts.parameters * (4 if facts.dtype == "float32" else 2)
    _require_memory(job, facts.identity.name, weights + _CHUNK_COPIES * chunk, files)


def check_memory_first(options: IngestOptions, job: Job) -> None:
    """Raise ResourceError if the LM alone exceeds the memory limit, before a worker is started to load it.

    A worker that is killed while it starts would be restarted forever.
    """
    model = options.model or default_model()
    _require_memory(job, model, weight_bytes(model), least="at least ")


def _require_memory(job: Job, model: str, worker: int, files: int = 0, least: str = "") -> None:
    """Raise ResourceError unless the memory suffices for the workers, with ``worker`` bytes each besides their
    libraries, and for a list of ``files`` in every process."""
    workers, held = max(1, job.workers), _DOCUMENT_BYTES * files
    needed = _CLIENT_BYTES + held + workers * (_WORKER_BYTES + worker + held)
    processes = "1 worker" if workers == 1 else f"{workers} workers"
    many = f" and {files:,} files" if held > worker else ""
    fewer = f", or fewer {option('workers')}" if workers > 1 else ""
    remedy = f"{model} with {processes}{many} needs {least}{format_need(needed)}; give more{fewer}"
    require_memory(job.memory, needed, remedy)


def row_bytes(segment: Segment) -> float:
    """Return the approximate bytes on disk of a token and its key: the key compressed, the token not."""
    plan = segment.plan
    return plan.key.dimension * segment.key_dtype.itemsize * _COMPRESSED_SHARE + plan.value_dtype.itemsize


def key_bytes(segment: Segment, chunks: int) -> int:
    """Return the approximate bytes on disk of this number of chunks of keys."""
    return int(min(chunks * segment.plan.chunk_rows, segment.rows) * row_bytes(segment))


def dtypes_of(plan: SegmentPlan) -> list[str]:
    """Return the LM's dtypes when it made a segment's keys: several after a merge, none after an import."""
    made = [part.partition(" ")[0] for part in plan.compute.split(", ")]
    return [dtype for dtype in made if dtype in ("float32", "bfloat16", "float16")]


def follows(plan: SegmentPlan, wanted: SegmentPlan) -> bool:
    """Return whether an unfinished segment's plan is the wanted one, apart from padding and library versions."""
    return replace(plan, padding=wanted.padding, versions=wanted.versions) == wanted


def differences(existing: SegmentPlan, wanted: SegmentPlan) -> list[str]:
    """Return the differences between two plans as text: ``context 256 (now 128)``."""
    changes = []
    for name, before, now in _leaves(existing, wanted):
        if before != now:
            changes.append(f"{name} {_short(before)} (now {_short(now)})")
    return changes


def _leaves(existing: Any, wanted: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    leaves: list[tuple[str, Any, Any]] = []
    for field in fields(existing):
        before, now, name = getattr(existing, field.name), getattr(wanted, field.name), f"{prefix}{field.name}"
        if hasattr(before, "__dataclass_fields__"):
            leaves += _leaves(before, now, f"{name}.")
        else:
            leaves.append((name, before, now))
    return leaves


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)
