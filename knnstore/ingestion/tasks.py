"""Tasks of an ingest. Each is small to send, writes files that it alone owns, commits last, and may run twice.

torch and transformers are imported when a task runs, so that a process that only distributes tasks stays small.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, cast

import google_crc32c
import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.corpus.options import ReadOptions
from knnstore.corpus.parts import TokenPart
from knnstore.corpus.tokens import PairTokens, PartSummary, tokenise_part
from knnstore.datastore.keycodec import INT8_LIMIT, KeyCodec, scales_of
from knnstore.datastore.segment import SAMPLES_TASK, KeyOrder, Segment, keys_task
from knnstore.datastore.segmentwriter import SegmentWriter
from knnstore.errors import CorruptStoreError, MismatchError, NumericsError
from knnstore.files import flush, replacing_path, storage_errors
from knnstore.lm.spec import LmFacts, LmSpec, Recognition
from knnstore.records import from_json, to_json
from knnstore.scheduling import Stage, kept
from knnstore.windows import Padding, Windows, cut_windows
from knnstore.wording import option

if TYPE_CHECKING:
    from knnstore.lm.forward import KeyModel

TASK_MODULES = ("knnstore.lm.forward", "knnstore.recognition")
"""What the tasks import when they run."""
# Numbers of windows whose keys determine the int8 scales, and whose keys are stored for the index's self-check.
_SCALE_WINDOWS = 128
_QUERY_WINDOWS = 64
_MOST_CLIPPED = 1e-4
# Tokens per forward pass, including padding: few enough for a CPU's cache, enough to keep a GPU busy.
_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
_MOST_SHRUNK = 64  # largest divisor of that number; with fewer tokens than a window, every window is a batch


TOKENS_TASKS = "tokens-*"
"""Pattern of the names of the tasks that tokenise parts of the corpus."""


def tokens_task(part: int) -> str:
    """Return the name of the task that tokenises a part of the corpus."""
    return f"tokens-{part:06d}"


@dataclass(frozen=True, slots=True)
class TokenTask:
    """Tokenise one part of the corpus."""

    segment: Path
    spec: LmSpec
    part: TokenPart
    options: ReadOptions

    @property
    def name(self) -> str:
        """Return the name of the commit."""
        return tokens_task(self.part.index)


@dataclass(frozen=True, slots=True)
class KeyTask:
    """Compute and write one chunk of ``rows`` keys."""

    segment: Path
    spec: LmSpec
    chunk: int
    rows: int
    shrunk: int = 1  # divisor of the tokens per forward pass

    @property
    def name(self) -> str:
        """Return the name of the commit."""
        return keys_task(self.chunk)

    def smaller(self) -> "KeyTask | None":
        """Return the same task with half the memory, for a worker that ran out; None if it can't be made smaller."""
        return replace(self, shrunk=2 * self.shrunk) if self.shrunk < _MOST_SHRUNK else None


@dataclass(frozen=True, slots=True)
class SamplesTask:
    """Compute the int8 scales and the queries.

    ``scales_of``: a segment whose scales are reused if they fit the keys. For a repair: ``kept``, the recorded facts of
    intact scales, which are kept; or ``crc32c``, the checksum that the scales of the existing keys must have.
    """

    segment: Path
    spec: LmSpec
    scales_of: Path | None = None
    kept: dict[str, Any] | None = None
    crc32c: int | None = None


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """Determine the sizes of the texts of token ids."""

    spec: LmSpec
    texts: tuple[tuple[int, ...], ...]


def part_tokens(segment: Path, part: int) -> Path:
    """Return the temporary file for the token ids of a part."""
    return segment / "parts" / f"{part:06d}.tokens"


def part_table(segment: Path, part: int) -> Path:
    """Return the temporary file for the table of documents of a part."""
    return segment / "parts" / f"{part:06d}.parquet"


def part_sources(segment: Path, part: int) -> Path:
    """Return the temporary file for the token ids of the sources of a part, for pairs of texts."""
    return segment / "parts" / f"{part:06d}.sources"


@dataclass(frozen=True, slots=True)
class RecogniseTask:
    """Determine whether the LM made a segment, finished or not; ``order``: where its keys are stored."""

    segment: Path
    spec: LmSpec
    order: KeyOrder


def recognise_model(task: RecogniseTask) -> Recognition:
    """Return whether the LM made the segment, and what that is based on."""
    from knnstore.recognition import recognise  # noqa: PLC0415 - imports torch

    return recognise(Segment(task.segment, task.order), key_model_of(task.spec), made_only=True)


def describe_model(spec: LmSpec) -> LmFacts:
    """Load the LM and describe it; an ``auto`` dtype is chosen by the speed on this machine."""
    from knnstore.lm.forward import describe  # noqa: PLC0415 - see the module
    from knnstore.lm.speed import choose_dtype  # noqa: PLC0415

    chosen, speed = choose_dtype(spec)
    return replace(describe(chosen), bfloat16_speed=speed)


def tokenise(task: TokenTask) -> PartSummary:
    """Write the token ids and the table of documents of a part."""
    segment = Segment(task.segment)
    files = [file(task.segment, task.part.index) for file in (part_tokens, part_table)]
    loaded = key_model_of(task.spec, segment).loaded
    if pairs := task.options.pairs is not None:
        files.append(part_sources(task.segment, task.part.index))
    spellings = 0

    def counted(tokenise: Callable[..., "np.ndarray[Any, Any]"]) -> Callable[[str], "np.ndarray[Any, Any]"]:
        def ids_of(text: str) -> "np.ndarray[Any, Any]":
            nonlocal spellings
            spellings += loaded.spellings.count(text)
            return tokenise(text, special=segment.plan.special_tokens is not False)

        return ids_of

    with storage_errors("write", files[0]), ExitStack() as stack:
        ids, table, *sources = (stack.enter_context(replacing_path(file)) for file in files)
        write = partial(tokenise_part, task.part, options=task.options, dtype=segment.plan.value_dtype)
        if pairs:
            sides = PairTokens(counted(loaded.tokenise_source), sources[0], segment.plan.key.context)
            summary = write(counted(loaded.tokenise_target), tokens_file=ids, documents_file=table, pairs=sides)
        else:
            summary = write(counted(loaded.tokenise), tokens_file=ids, documents_file=table)
    summary = replace(summary, special_spellings=spellings or None)
    segment.commits.commit(task.name, files, **to_json(summary))
    return summary


def committed_summaries(segment: Segment, parts: int) -> dict[int, PartSummary]:
    """Return the summaries of the parts that earlier runs tokenised and whose files are intact, by part number."""
    names = {tokens_task(part): part for part in range(parts)}
    done = segment.commits.find_all(names)
    # the files may have been on the disk for days, so their checksums are verified
    whole = {name: commit for name, commit in done.items() if not segment.commits.damage(name)}
    return {names[name]: from_json(PartSummary, commit.facts, name) for name, commit in whole.items()}


def decoded_bytes(task: DecodeTask) -> list[int]:
    """Return the UTF-8 bytes of the text of each list of token ids."""
    model = key_model_of(task.spec)
    return [len(model.loaded.decode(list(tokens)).encode()) for tokens in task.texts]


def text_tokens(spec: LmSpec, text: str) -> int:
    """Return the number of tokens of a text."""
    return len(key_model_of(spec).loaded.tokenise(text))


def write_samples(task: SamplesTask) -> int:
    """Write the int8 scales, and keys of held-out tokens as queries for the index's self-check; return their number."""
    segment = Segment(task.segment)
    model = key_model_of(task.spec, segment)
    plan, table = segment.plan, segment.documents
    cut = partial(cut_windows, context=plan.key.context, stride=plan.key.stride)
    with SegmentWriter(segment).task(SAMPLES_TASK) as samples:
        if task.kept is not None:
            samples.facts |= task.kept
            samples.write_whole(key_scales=cast(Float32, segment.codec.scales))
        elif plan.key_dtype == "int8":
            rows, sample = _sampled_keys(segment, model, cut(table.first_row, table.tokens), _stored, _SCALE_WINDOWS)
            _require_finite(segment, rows, sample)
            scales, samples.facts["scales_of"] = _scales(sample, task.scales_of)
            if task.crc32c not in (None, google_crc32c.value(scales.tobytes())):
                raise CorruptStoreError(
                    f"{segment.root} wasn't made by an LM only, so its scales can't be recomputed: use a copy"
                )
            samples.write_whole(key_scales=scales)
        else:
            samples.facts["scales_of"] = None
        windows = cut(table.heldout_first, table.heldout_tokens)
        tokens, queries = _sampled_keys(segment, model, windows, _heldout, _QUERY_WINDOWS)
        _require_finite(segment, tokens, queries, heldout=True)
        samples.write_queries(tokens, queries)
    return len(queries)


def keys_stage(segment: Segment, spec: LmSpec) -> Stage[KeyTask]:
    """Return the stage that computes the keys of a segment with complete documents."""
    ranges = map(segment.chunk_range, range(segment.chunks))
    root = segment.root.absolute()
    tasks = [KeyTask(root, spec, chunk, end - begin) for chunk, (begin, end) in enumerate(ranges)]
    return Stage("keys", segment.commits, tasks, write_keys, "tokens")


def write_keys(task: KeyTask) -> int:
    """Write one chunk of keys; return its number of rows. Raises NumericsError with document and token."""
    segment = Segment(task.segment)
    begin, end = segment.chunk_range(task.chunk)
    model, plan, table = key_model_of(task.spec, segment), segment.plan, segment.documents
    codec = segment.codec
    windows = cut_windows(
        table.first_row, table.tokens, context=plan.key.context, stride=plan.key.stride, rows=(begin, end)
    )
    block = np.empty((end - begin, segment.dimension), codec.stored)
    for rows, keys in _window_keys(segment, model, windows, _stored(segment, windows), task.shrunk):
        in_chunk = (rows >= begin) & (rows < end)  # a window across a border is run for both chunks
        block[rows[in_chunk] - begin] = _encode(segment, codec, rows[in_chunk], keys[in_chunk])
    if Segment(task.segment).fingerprint != segment.fingerprint:  # this worker may have been frozen for hours
        raise MismatchError(f"{segment.root} was started again while {task.name} ran: its keys belong to the old plan")
    return SegmentWriter(segment).write_keys(task.chunk, block)


TokenReader = Callable[[int, int, int], "np.ndarray[Any, Any]"]


def key_model_of(spec: LmSpec, segment: Segment | None = None) -> "KeyModel":
    """Return the LM, loaded once per process. ``spec.identity``: its expected identity, if not that of the plan.

    Raises MismatchError if it isn't the LM of the segment's plan, or runs in another dtype or on another kind of device
    here, because keys would differ between the machines of a cluster.
    """
    from knnstore.lm.forward import key_model  # noqa: PLC0415 - see the module
    from knnstore.lm.loading import load_model  # noqa: PLC0415

    kept(key_model.cache_clear)
    kept(load_model.cache_clear)
    model = key_model(replace(spec, identity=None))
    if segment is None:
        return model
    compute = f"{model.loaded.dtype} on {model.loaded.device.type}"
    if compute != segment.plan.compute:
        raise MismatchError(
            f"{gethostname()} runs the LM in {compute}, but the store's keys are made in {segment.plan.compute}: "
            f"give {option('dtype')} and {option('device')} that every machine has, or use machines of one kind"
        )
    wanted = spec.identity or segment.plan.model
    if replace(model.loaded.identity, name=wanted.name) != wanted:
        raise MismatchError(f"{gethostname()} has another LM at {spec.model} than the one that makes the keys")
    return model


def _window_keys(segment: Segment, model: "KeyModel", windows: Windows, tokens: TokenReader, shrunk: int = 1) -> Any:
    from knnstore.lm.forward import window_keys  # noqa: PLC0415 - see the module

    batch_tokens = max(1, _BATCH_TOKENS.get(model.loaded.device.type, _BATCH_TOKENS["cpu"]) // shrunk)
    sources = _sources(segment, windows) if segment.plan.key.task == "seq2seq" else None
    padding = cast("Padding", segment.plan.padding or "longest")
    return window_keys(model, windows, tokens, batch_tokens, sources, padding=padding)


def _sources(segment: Segment, windows: Windows) -> Callable[[int], "np.ndarray[Any, Any]"]:
    """Return a reader of documents' sources; all those of the windows are fetched at once."""
    first = int(windows.document.min())
    texts = segment.sources(first, int(windows.document.max()) + 1)
    return lambda document: texts[document - first]


def _stored(segment: Segment, windows: Windows) -> TokenReader:
    """Return a reader of stored documents' tokens; all those of the windows are fetched at once."""
    first_row = segment.documents.first_row
    context = segment.plan.key.context
    low = max(int(windows.row.min()) - context, 0)
    values = segment.values(low, min(int((windows.row + windows.scored).max()), segment.rows))
    return lambda document, begin, end: values[first_row[document] + begin - low : first_row[document] + end - low]


def _heldout(segment: Segment, windows: Windows) -> TokenReader:
    documents = {int(document): segment.heldout(int(document)) for document in np.unique(windows.document)}
    return lambda document, begin, end: documents[document][begin:end]


def _sampled_keys(
    segment: Segment, model: "KeyModel", windows: Windows, reader: Callable[[Segment, Windows], TokenReader], count: int
) -> tuple[Int64, Float32]:
    """Return rows, int64 (n,), and keys, float32 (n, d), of ``count`` windows spread evenly over the documents."""
    if not len(windows):
        return np.empty(0, np.int64), np.empty((0, segment.dimension), np.float32)
    from knnstore.lm.forward import one_thread  # noqa: PLC0415 - see the module

    chosen = np.unique(np.linspace(0, len(windows) - 1, min(count, len(windows)), dtype=np.int64))
    parts = []
    with one_thread():  # in a pass over a single window, the last bits depend on the number of threads
        for index in chosen:  # one window at a time, because their tokens are stored far apart
            window = windows.select(slice(int(index), int(index) + 1))
            parts += list(_window_keys(segment, model, window, reader(segment, window)))
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([keys for _, keys in parts])


def _scales(sample: Float32, given: Path | None) -> tuple[Float32, str | None]:
    """Return the scales of the given segment and its name if they clip almost none of the sample; else new scales.

    Segments with equal scales are compacted without decoding their keys.
    """
    given_scales = Segment(given).codec.scales if given else None
    if given is None or given_scales is None:
        return scales_of(sample), None
    clipped = (np.abs(sample) > (INT8_LIMIT + 0.5) * given_scales).sum()
    return (scales_of(sample), None) if clipped > _MOST_CLIPPED * sample.size else (given_scales, given.name)


def _encode(segment: Segment, codec: KeyCodec, rows: Any, keys: Any) -> Any:
    try:
        return codec.encode(keys)
    except NumericsError as error:
        fits = (np.abs(keys) < (65504 if codec.dtype == "float16" else np.inf)).all(axis=1)  # False for NaN
        first = int(np.argmin(fits))
        worst = keys[first][np.argmax(np.abs(keys[first]))]
        instead = option("dtype", "float32")
        if codec.dtype == "float16":
            instead = f"{option('key_dtype', 'int8')}, or {instead}"
        fault = f"{_place(segment, int(rows[first]))}: an activation is {worst}, which {codec.dtype} can't hold"
        raise NumericsError(f"{fault}; try {instead}") from error


def _require_finite(segment: Segment, rows: Int64, keys: Float32, *, heldout: bool = False) -> None:
    """Raise NumericsError if a key of the sample isn't finite, because it would spoil the scales and so all keys."""
    finite = np.isfinite(keys).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        where = _place(segment, int(rows[first]), heldout=heldout)
        worst = keys[first][~np.isfinite(keys[first])][0]
        raise NumericsError(f"{where}: an activation is {worst}; try {option('dtype', 'float32')}")


def _place(segment: Segment, row: int, *, heldout: bool = False) -> str:
    """Return document and position of a row, or of a place among the held-out tokens, as text."""
    table = segment.documents
    if not heldout:
        document = int(table.locate(np.array([row]))[0])
        return f"{table[document]}, token {row - int(table.first_row[document])}"
    document = int(np.searchsorted(table.heldout_first + table.heldout_tokens, row, side="right"))
    position = row - int(table.heldout_first[document]) + int(table.tokens[document])
    return f"{table[document]}, token {position}, which is held out"


def remove_parts(segment: Path) -> None:
    """Remove the temporary files of tokenisation and their commits, which a finished segment doesn't need."""
    with storage_errors("clean", segment):
        for path in sorted((segment / "parts").glob("*")):
            path.unlink()
        if (segment / "parts").is_dir():
            (segment / "parts").rmdir()
            flush(segment)
        for path in sorted((segment / "commits").glob("tokens-*.json")):
            path.unlink()
        flush(segment / "commits")
