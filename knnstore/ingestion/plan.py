"""Decide what an ingest will do before it does any of it."""

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
# A chunk is a task: large enough that files are few and writes sequential, small enough that a kill costs seconds.
_CHUNK_BYTES = 2**25
_FEWEST_CHUNK_ROWS, _MOST_CHUNK_ROWS = 2**10, 2**17
# Measured resident memory: the process that hands out tasks, and a worker with torch and transformers imported.
_CLIENT_BYTES = 300_000_000
_WORKER_BYTES = 700_000_000
# Measured: where the rows of a document lie, and a little of what it is while that is written down.
_DOCUMENT_BYTES = 150
# A chunk is held as keys, as Zarr's copy of them, and compressed.
_CHUNK_COPIES = 3
# zstd leaves this much of keys (measured on real ones: 0.84 of int8, 0.92 of float16); rounded up
_COMPRESSED_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """What to ingest and how. ``None`` stands for the default that the LM or the corpus gives.

    ``holdout`` is a share of the documents. ``prune`` removes
    documents of the store that the corpus has no more, ``readmit`` takes in again what was removed on purpose.
    ``include``, ``exclude`` and ``follow_links``: which files are read, see ``Selection``.
    ``special_tokens``: the spelling of a special token in a document is that token, not ordinary text.
    ``allow_mismatch``: add keys of another LM, or other windows, to those that the store holds.
    ``task`` seq2seq: the corpus is of pairs of texts, ``source`` and ``target`` parallel files of them, and
    ``source_field`` and ``target_field`` say where the two are in a record of ``corpus``.
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
            remedy = "a pair of texts is one window, and slides by nothing"
            raise UsageError.about("stride", self.stride, remedy=remedy)
        if not 0 <= self.holdout < 1:
            fault, remedy = "is not a share between 0 and 1", "0.01 holds out one in 100"
            raise UsageError.about("holdout", self.holdout, fault, limit=1, remedy=remedy)

    @property
    def pairs(self) -> tuple[str, str] | None:
        """The fields of a pair, of a corpus of pairs."""
        return (self.source_field, self.target_field) if self.task == "seq2seq" else None

    @property
    def named(self) -> tuple[str, ...]:
        """The files and folders whose documents these are; of parallel files the target side."""
        return tuple(map(local_path, (*self.corpus, *self.target)))

    @property
    def layer(self) -> str:
        """The layer whose activations are the keys, as a store names it."""
        return f"{DECODER if self.pairs else ''}{self.key}"

    @property
    def reading(self) -> ReadOptions:
        """How the corpus is read."""
        return ReadOptions(text_field=self.text_field, errors=self.errors, pairs=self.pairs)

    @property
    def selection(self) -> Selection:
        """Which files of the corpus are read."""
        return Selection(self.include, self.exclude, self.follow_links)

    def files(self) -> Listing:
        """The files of the corpus. Raises CorpusError where there are none."""
        if self.pairs:
            return find_pairs(self.corpus, self.source, self.target, self.selection, self.pairs)
        return find_sources(self.corpus, self.selection, [self.text_field])

    def scope(self) -> Callable[[str], bool]:
        """Whether a document of that path belongs to the corpus, and is gone if it isn't there."""
        return scope(self.named, self.selection, PAIR_FORMATS if self.pairs else TEXT_FORMATS)


def segment_plan(options: IngestOptions, facts: LmFacts, sources: str) -> SegmentPlan:
    """The plan of a segment; ``sources`` is the digest of the corpus' files.

    Raises UsageError for windows that the LM can't take.
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
        holdout=float(options.holdout),  # 0 and 0.0 are one plan, and not one JSON
        compute=f"{facts.dtype} on {facts.device.split(':')[0]}",
        versions={name: version(name) for name in _LIBRARIES},
        distinct=True,
        special_tokens=options.special_tokens,
    )


def older_plan(plan: SegmentPlan) -> SegmentPlan:
    """The plan as versions wrote it that lack the fields which came later."""
    later: dict[str, Any] = {field.name: None for field in fields(plan) if field.metadata == LATER}
    return replace(plan, **later)


def chunk_rows(dimension: int, key_dtype: KeyDtype) -> int:
    """Rows a chunk of keys: a power of two of about 32 MiB, at most 131,072."""
    rows = _CHUNK_BYTES // (dimension * stored_dtype(key_dtype).itemsize)
    return min(max(1 << rows.bit_length() - 1, _FEWEST_CHUNK_ROWS), _MOST_CHUNK_ROWS)


def choose_workers(options: IngestOptions, memory: int, cores: int) -> int:
    """As many worker processes as there are cores, or as the memory holds if those are fewer.

    Processes of few threads waste nothing on waiting for each other; only a large LM is worth all the threads.
    """
    weights = weight_bytes(options.model or default_model())
    # files hold two bytes a parameter as a rule, and a worker may need four
    affordable = (memory - _CLIENT_BYTES) // (_WORKER_BYTES + 2 * weights + _CHUNK_COPIES * _CHUNK_BYTES)
    return int(min(max(1, affordable), cores))


def check_memory(options: IngestOptions, facts: LmFacts, plan: SegmentPlan, files: int, job: Job) -> None:
    """Raise ResourceError if a run over so many files can't stay within the memory promised."""
    chunk = plan.chunk_rows * facts.dimension * stored_dtype(options.key_dtype).itemsize
    weights = facts.parameters * (4 if facts.dtype == "float32" else 2)
    _require_memory(job, facts.identity.name, weights + _CHUNK_COPIES * chunk, files)


def check_memory_first(options: IngestOptions, job: Job) -> None:
    """Raise ResourceError if the memory promised can't hold the LM at all: before a worker is started to load it.

    One that is killed while it starts would be started again, for ever.
    """
    model = options.model or default_model()
    _require_memory(job, model, weight_bytes(model), least="at least ")


def _require_memory(job: Job, model: str, worker: int, files: int = 0, least: str = "") -> None:
    """Raise ResourceError unless each worker can have so many bytes besides its libraries, and all a list of files."""
    workers, held = max(1, job.workers), _DOCUMENT_BYTES * files
    needed = _CLIENT_BYTES + held + workers * (_WORKER_BYTES + worker + held)
    processes = "1 worker" if workers == 1 else f"{workers} workers"
    many = f" and {files:,} files" if held > worker else ""
    fewer = f", or fewer {option('workers')}" if workers > 1 else ""
    remedy = f"{model} with {processes}{many} needs {least}{format_need(needed)}; give more{fewer}"
    require_memory(job.memory, needed, remedy)


def row_bytes(segment: Segment) -> float:
    """Bytes on disk of a token with its key, about: the key compressed, the token as it is."""
    plan = segment.plan
    return plan.key.dimension * segment.key_dtype.itemsize * _COMPRESSED_SHARE + plan.value_dtype.itemsize


def key_bytes(segment: Segment, chunks: int) -> int:
    """Bytes on disk that so many chunks of keys take, about."""
    return int(min(chunks * segment.plan.chunk_rows, segment.rows) * row_bytes(segment))


def dtypes_of(plan: SegmentPlan) -> list[str]:
    """The LM's dtypes in which the keys of a segment were made: more than one after a merge, none after an import."""
    made = [part.partition(" ")[0] for part in plan.compute.split(", ")]
    return [dtype for dtype in made if dtype in ("float32", "bfloat16", "float16")]


def follows(begun: SegmentPlan, wanted: SegmentPlan) -> bool:
    """Whether a segment that was begun is what is wanted now; its padding and its libraries' versions are its own."""
    return replace(begun, padding=wanted.padding, versions=wanted.versions) == wanted


def differences(found: SegmentPlan, wanted: SegmentPlan) -> list[str]:
    """What differs between two plans, for people: ``context 256 (now 128)``."""
    told = []
    for name, one, other in _leaves(found, wanted):
        if one != other:
            told.append(f"{name} {_short(one)} (now {_short(other)})")
    return told


def _leaves(found: Any, wanted: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    leaves: list[tuple[str, Any, Any]] = []
    for field in fields(found):
        one, other, name = getattr(found, field.name), getattr(wanted, field.name), f"{prefix}{field.name}"
        if hasattr(one, "__dataclass_fields__"):
            leaves += _leaves(one, other, f"{name}.")
        else:
            leaves.append((name, one, other))
    return leaves


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)
