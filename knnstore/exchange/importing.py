"""Import keys into a store of the same format as an ingest's: streamed chunk by chunk, and resumable."""

import hashlib
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from knnstore.datastore.documents import VALUE_CHUNK_ROWS
from knnstore.datastore.edits import editing
from knnstore.datastore.keycodec import KeyDtype
from knnstore.datastore.manifest import KeyRecipe, ModelIdentity
from knnstore.datastore.segment import SegmentPlan
from knnstore.datastore.store import store_path
from knnstore.diskspace import bytes_below
from knnstore.errors import MismatchError, UsageError
from knnstore.exchange.keycheck import KeyMatch, match_keys
from knnstore.exchange.keysource import KeySource
from knnstore.exchange.segment import begin_segment, write_segment
from knnstore.files import encode_json, make_folder
from knnstore.ingestion.plan import chunk_rows
from knnstore.lm.spec import LmSpec
from knnstore.progress import Reporter
from knnstore.scheduling import Job
from knnstore.windows import require_window
from knnstore.wording import option

_UNKNOWN = "unknown"
# Context of the windows if no LM is given; it matters only once a text is scored.
_CONTEXT = 1024


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What is known of the imported keys, and how to store them.

    ``model``: the LM that made the keys; None if unknown, and then no text can be scored. ``key``: its layer; None to
    determine it. ``check``: compare the keys with the LM's own. ``vocabulary``: number of tokens, if no model is given.
    ``key_dtype``: how keys are stored; float16 keeps float16 keys unchanged.
    """

    store: str | None = None
    model: str | None = None
    key: str | None = None
    check: bool = True
    vocabulary: int | None = None
    context: int | None = None
    stride: int | None = None
    key_dtype: KeyDtype = "float16"
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.model is not None and not self.check and self.key is None:
            unchecked = option("check", False)
            raise UsageError(f"{unchecked} can't determine the layer of the keys: give it with {option('key')}")
        if self.model is not None and self.vocabulary is not None:
            raise UsageError(f"{option('vocabulary')} is only for keys without a {option('model')}: give only one")
        if self.vocabulary is not None and not 0 < self.vocabulary <= 2**31:
            remedy = "give the number of tokens"
            raise UsageError.about("vocabulary", self.vocabulary, limit=2**31, remedy=remedy)


@dataclass(frozen=True, slots=True)
class ImportReport:
    """The result of an import. ``likeness``: of the keys to the LM's own; None if they weren't compared."""

    store: Path
    rows: int
    dimension: int
    layer: str
    likeness: float | None
    bytes: int
    keys_per_second: float
    tasks_run: int
    tasks_kept: int


def import_keys(source: KeySource, options: ImportOptions, job: Job) -> ImportReport:
    """Create a store from the keys of a source, or resume an interrupted run.

    The same call after an interruption writes only the missing chunks. Raises CorpusError for values that aren't
    tokens, MismatchError for keys that aren't the model's or a store of something else, NumericsError for keys that
    can't be stored.
    """
    reporter = job.reporter
    plan, match = _plan(options, source, reporter)
    source = source.for_vocabulary(plan.model.vocabulary)
    root = store_path(options.store or default_name(Path(source.name)))
    make_folder(root)
    with editing(root) as edit:
        writer = begin_segment(edit, plan, overwrite=options.overwrite)
        segment, finished = writer.segment, bool(edit.state.segments)
        if not finished:
            segment.commits.forget_damaged()  # an interrupted run may have left damaged files
        run, kept, speed = write_segment(writer, source, job)
        if not finished:
            what = f"import {source.rows:,} keys of {Path(source.name).name}"
            edit.publish(replace(edit.state, segments=(segment.root.name,)), "import", what, keys=source.rows)
    return ImportReport(
        store=root,
        rows=source.rows,
        dimension=plan.key.dimension,
        layer=plan.key.layer,
        likeness=match.likeness if match else None,
        bytes=bytes_below(segment.root),
        keys_per_second=speed,
        tasks_run=run,
        tasks_kept=kept,
    )


def default_name(keys: Path) -> str:
    """Return a store's name from a file of keys: ``dstore`` for ``dstore_keys.npy``, ``wiki`` for ``wiki/keys.npy``."""
    stem = keys.name.removesuffix(".npy").removesuffix("keys").rstrip("_-.")
    return stem or keys.resolve().parent.name or "imported"


def _plan(options: ImportOptions, source: KeySource, reporter: Reporter) -> tuple[SegmentPlan, KeyMatch | None]:
    dimension = source.dimension
    match: KeyMatch | None = None
    if options.model is None:
        vocabulary = options.vocabulary or _vocabulary(source, reporter)
        model = ModelIdentity(_UNKNOWN, "", "", "", vocabulary)
        layer, context, longest = options.key or _UNKNOWN, options.context or _CONTEXT, 2**20
    else:
        from knnstore.lm.forward import describe  # noqa: PLC0415 - imports torch

        spec = LmSpec(options.model, options.key or "ffn-input", "auto", options.device)
        facts = describe(spec)
        if facts.dimension != dimension:
            raise MismatchError(
                f"{source.name} has keys of {dimension}, and those of {facts.identity.name} are "
                f"{facts.dimension} wide: give the {option('model')} that made them, or correct {option('dim')}"
            )
        tokens = source.for_vocabulary(facts.identity.vocabulary)
        if options.check:
            match = match_keys(tokens, spec, facts, options.key)
            reporter.say(
                f"check     {match.layer} of {facts.identity.name}: likeness {match.likeness:.3f} to its own keys"
            )
        model, layer = facts.identity, match.layer if match else facts.layer
        context, longest = options.context or facts.default_context, facts.longest_context
    stride = options.stride or max(1, context // 2)
    require_window(context, stride, longest=longest, model=model.name)
    plan = SegmentPlan(
        model=model,
        key=KeyRecipe(layer, dimension, context, stride),
        key_dtype=options.key_dtype,
        chunk_rows=chunk_rows(dimension, options.key_dtype),
        sources=hashlib.sha256(encode_json(source.facts())).hexdigest(),
        text_field="",
        errors="strict",
        holdout=0.0,
        compute="imported",
        versions={name: version(name) for name in ("knnstore", "numpy")},
    )
    return plan, match


def _vocabulary(source: KeySource, reporter: Reporter) -> int:
    """Return one more than the largest value."""
    largest = 0
    with reporter.bar("values", source.rows, "tokens") as advance:
        for begin in range(0, source.rows, VALUE_CHUNK_ROWS):
            values = source.read_values(begin, min(begin + VALUE_CHUNK_ROWS, source.rows))
            largest = max(largest, int(values.max()))
            advance(len(values))
    return largest + 1
