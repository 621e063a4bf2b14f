"""The ingest job: create, finish or update the store of a corpus."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from knnstore.corpus.listing import Listing
from knnstore.corpus.parts import Parts, plan_parts
from knnstore.corpus.sources import describe, fingerprint
from knnstore.datastore.adopting import own_segment
from knnstore.datastore.discarding import open_store, other_store
from knnstore.datastore.edits import Edit, editing
from knnstore.datastore.layout import SEGMENT_PLAN
from knnstore.datastore.locking import require_free
from knnstore.datastore.manifest import MANIFEST_FILE, load_manifest
from knnstore.datastore.removed import save_removed
from knnstore.datastore.segment import DOCUMENTS_TASK, Segment, SegmentPlan
from knnstore.datastore.segmentwriter import SegmentWriter
from knnstore.datastore.store import Datastore, default_store, store_path
from knnstore.datastore.sweeping import remove_tree, unfinished
from knnstore.diskspace import bytes_below
from knnstore.errors import CorpusError, MismatchError
from knnstore.files import make_folder
from knnstore.holdout import choose_heldout, choose_heldout_pairs
from knnstore.ingestion.append import Append, Appended
from knnstore.ingestion.copies import superfluous_of
from knnstore.ingestion.making import Making, count, padded
from knnstore.ingestion.partner import continued, partner_of
from knnstore.ingestion.plan import IngestOptions, check_memory, differences, dtypes_of, older_plan, segment_plan
from knnstore.ingestion.tasks import TOKENS_TASKS, describe_model
from knnstore.lm.spec import SHIPPED_MODELS, LmFacts, LmSpec, default_model, resolve_model
from knnstore.records import fingerprint as record_fingerprint
from knnstore.scheduling import Job
from knnstore.sizes import format_size
from knnstore.wording import option


@dataclass(frozen=True, slots=True)
class IngestReport:
    """The result of an ingest, and the current store: ``documents`` and ``rows`` without removed ones, ``bytes`` of all
    segments.

    ``added``, ``changed`` and ``unchanged`` count the documents of the corpus; ``copies`` those left out because an
    added one has the same text; ``withheld`` those that were deliberately removed from the store and stay out;
    ``gone`` documents of the store that are no longer in the corpus, of which ``pruned`` were removed. ``new_rows``:
    keys added. ``tokens_per_second``: keys computed per second by this run; 0 if none were left. ``tasks_run`` counts
    the tasks of this run, ``tasks_kept`` those of earlier runs. ``file_types`` and ``left_out`` count the files of the
    corpus that were and weren't read, by type; ``linked_files`` those read through links that lead out of the corpus.
    Among the tokenised documents: ``empty`` and ``skipped`` documents were left out, ``replaced`` counts characters.
    """

    store: Path
    documents: int
    rows: int
    heldout_documents: int
    heldout_tokens: int
    added: int
    changed: int
    unchanged: int
    copies: int
    withheld: int
    gone: int
    pruned: int
    new_rows: int
    bytes: int
    tokens_per_second: float
    tasks_run: int
    tasks_kept: int
    empty: int = 0
    skipped: int = 0
    replaced: int = 0
    file_types: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    linked_files: int = 0
    special_spellings: int = 0


def ingest(options: IngestOptions, job: Job) -> IngestReport:
    """Create the store of a corpus, resume an interrupted run, or add new documents to a finished store.

    Documents are identified by the digests of their texts, so that only new ones go through the LM; a new document with
    the name of a stored one replaces it. The same call after an interruption repeats only the tasks that were running,
    and results in the same bytes as an uninterrupted run. Raises UsageError, StoreError or ResourceError with the next
    step in the message.
    """
    reporter, root = job.reporter, store_path(options.store or default_store(options.named[0]))
    require_free(root)
    files = options.files()
    reporter.say(f"corpus    {_corpus_line(files, options)}")
    model = options.model or default_model()
    folder = resolve_model(model)
    spec = LmSpec(str(folder.resolve()), options.layer, _dtype(root, options), options.device)
    facts = job.run_one(describe_model, spec)
    spec = replace(spec, dtype=facts.dtype)  # for all tasks, even if another dtype is faster on a worker
    reporter.say(_model_line(model, folder, facts, options.layer))
    if facts.bfloat16_speed is not None:
        subject = "" if facts.dtype == "bfloat16" else "bfloat16 runs at only "
        speed = f"{facts.bfloat16_speed:.2f} × the speed of float32 on this machine"
        reporter.say(f"dtype     {facts.dtype}: {subject}{speed}")
    plan = segment_plan(options, facts, fingerprint(files))
    check_memory(options, facts, plan, len(files), job)
    make_folder(root)
    with editing(root, reporter.say) as edit:
        job.runner.require_shared(root, [folder, Path(files[0].folder) / files[0].path])
        open_store(edit, plan.model, plan.key, parameter="store", overwrite=options.overwrite)
        existing = _existing(root)
        if existing is not None:
            allow = options.allow_mismatch
            partner = partner_of(existing, plan, spec, job, allow=allow)
            plan, spec = partner.plan, partner.spec
        if existing is not None and edit.state.segments:
            done = Append(edit, options, _as_stored(root, plan, existing), spec, files, job).run()
        else:
            plan = plan if existing is None else continued(existing.plan, plan, reporter.say)
            segment = _first_segment(edit, plan, lambda: padded(plan, spec, job))
            done = _make_first(edit, Making(segment, spec, job), plan_parts(files), options)
        return _report(edit.store, done, files)


def _dtype(root: Path, options: IngestOptions) -> str:
    """Return the dtype of the LM: as requested, else that of the existing keys, so that ``auto`` never mixes two."""
    if options.dtype != "auto" or options.overwrite:
        return options.dtype
    existing = _existing(root) if (root / MANIFEST_FILE).exists() else None
    stored = [] if existing is None else dtypes_of(existing.plan)
    return stored[0] if stored else "auto"


def _as_stored(root: Path, plan: SegmentPlan, existing: Segment) -> SegmentPlan:
    """Return the plan of an append, which treats spellings of special tokens as the store does.

    Raises MismatchError if ``special_tokens`` requests otherwise.
    """
    stored = existing.plan.special_tokens
    if plan.special_tokens and stored is False:
        raise MismatchError(
            f"{root} takes spellings of special tokens as ordinary text: omit {option('special_tokens', True)}, "
            f"{other_store()}"
        )
    return replace(plan, special_tokens=stored)


def _make_first(edit: Edit, making: Making, parts: Parts, options: IngestOptions) -> Appended:
    """Build the first segment of a store and publish it."""
    segment = making.segment
    making.forget_damaged()
    choose = choose_heldout_pairs if options.pairs else choose_heldout
    heldout = lambda tokens, _, repeats: choose(tokens, options.holdout, repeats=repeats)  # noqa: E731 - one expression
    if not making.tokenise(parts, options.reading, heldout):
        raise CorpusError("the corpus holds no text: every document is empty or was skipped; give other files")
    if segment.rows == 0:
        raise CorpusError(f"every token is held out and none is left to store: give a smaller {option('holdout')}")
    making.write_keys()
    removed = superfluous_of(segment)
    copies = making.copies + sum(map(len, removed.values()))
    documents = len(segment.documents) - sum(map(len, removed.values()))
    what = f"add {count(documents, 'document')}, {segment.rows:,} keys"
    hidden = save_removed(edit.root, removed, edit.epoch)
    state = replace(edit.state, segments=(segment.root.name,), removed=hidden)
    edit.publish(state, "ingest", what, documents=documents, keys=segment.rows, replaced=0, pruned=0)
    return Appended(documents, 0, 0, copies, 0, 0, 0, (making,))


def _report(store: Datastore, done: Appended, files: Listing) -> IngestReport:
    heldout = [(segment, store.heldout(segment)) for segment in store.segments]
    removed = sum(map(len, store.removed.values()))
    made, seconds = sum(making.rows for making in done.makings), sum(making.seconds for making in done.makings)
    return IngestReport(
        store=store.root,
        documents=sum(len(segment.documents) for segment in store.segments) - removed,
        rows=store.live_rows,
        heldout_documents=sum(len(numbers) for _, numbers in heldout),
        heldout_tokens=sum(int(segment.documents.heldout_tokens[numbers].sum()) for segment, numbers in heldout),
        added=done.added,
        changed=done.changed,
        unchanged=done.unchanged,
        copies=done.copies,
        withheld=done.withheld,
        gone=done.gone,
        pruned=done.pruned,
        new_rows=sum(making.segment.rows for making in done.makings) if done.added or done.changed else 0,
        bytes=bytes_below(*(segment.root for segment in store.segments)),
        tokens_per_second=made / seconds if made else 0.0,
        tasks_run=sum(making.tasks_run for making in done.makings),
        tasks_kept=sum(making.tasks_kept for making in done.makings),
        empty=sum(making.empty for making in done.makings),
        skipped=sum(making.skipped for making in done.makings),
        replaced=sum(making.replaced for making in done.makings),
        special_spellings=sum(making.special_spellings for making in done.makings),
        file_types={kind.label: kind.files for kind in files.taken},
        left_out={kind.label: kind.files for kind in files.left_out},
        linked_files=files.outside,
    )


def _existing(root: Path) -> Segment | None:
    """Return the first segment of the store, finished or not; None if there isn't any."""
    if (state := load_manifest(root)).segments:
        return Datastore(root, state).segments[0]
    path = next((path for path in unfinished(root) if (path / SEGMENT_PLAN).is_file()), None)
    return None if path is None else Segment(path)


def _first_segment(edit: Edit, plan: SegmentPlan, complete: Callable[[], SegmentPlan]) -> Segment:
    """Return the first segment: what an interrupted run left, or an empty one.

    Finished tasks of the interrupted run are adopted only if its plan is equal, because each task's commit carries the
    plan's fingerprint. Plans of older versions lack some fields: such a segment keeps its plan once its documents are
    chosen; before that, it gets the complete plan and its tokenised parts are adopted.
    ``complete()`` returns the plan with properties measured on the LM, for a segment without keys.
    Raises MismatchError if the segment was started with another plan.
    """
    leftover, older = _existing(edit.root), older_plan(plan)
    if leftover is not None and _only_reads_otherwise(leftover, plan):
        # the run stopped at an unreadable document, and its message suggested these settings: only tokens are lost
        remove_tree(leftover.root)
        leftover = None
    if leftover is None:
        plan = complete()
    elif leftover.plan == older:
        # in its tokenised parts, spellings of special tokens are special tokens
        plan = older if leftover.commits.find(DOCUMENTS_TASK) else replace(complete(), special_tokens=None)
    else:
        special = None if leftover.plan.special_tokens is None else plan.special_tokens
        plan = replace(plan, padding=leftover.plan.padding, special_tokens=special)
        changed = differences(leftover.plan, plan)
        if changed:
            dtype, _, device = leftover.plan.compute.partition(" on ")
            compute = f" ({option('dtype', dtype)} {option('device', device)})"
            same = compute if leftover.plan.compute != plan.compute else ""
            raise MismatchError(
                f"{edit.root} was started with another corpus or other settings: {'; '.join(changed)}. "
                f"Run with the same ones{same}, {other_store()}"
            )
    segment = SegmentWriter.begin(own_segment(edit, leftover.root if leftover else None), plan).segment
    segment.commits.adopt(TOKENS_TASKS, record_fingerprint(older))
    return segment


def _only_reads_otherwise(leftover: Segment, plan: SegmentPlan) -> bool:
    """Return whether a segment without documents differs from ``plan`` only in how text is read."""
    earlier = leftover.plan
    same = replace(plan, padding=earlier.padding, special_tokens=earlier.special_tokens)
    reads_alike = (earlier.errors, earlier.text_field) == (plan.errors, plan.text_field)
    if reads_alike or earlier != replace(same, errors=earlier.errors, text_field=earlier.text_field):
        return False
    return leftover.commits.find(DOCUMENTS_TASK) is None


def _corpus_line(listing: Listing, options: IngestOptions) -> str:
    files = count(len(listing) + len(options.source), "file")
    outside = f", {count(listing.outside, 'file')} of them by links out of the corpus" if listing.outside else ""
    left_out = f"; left out {describe(listing.left_out)}" if listing.left_out else ""
    size = f"{format_size(listing.bytes)}{' of pairs' if options.pairs else ''}"
    return f"{files}, {size}: {describe(listing.taken)}{outside}{left_out}"


def _model_line(name: str, folder: Path, facts: LmFacts, asked: str) -> str:
    origin = "shipped with knnstore" if SHIPPED_MODELS in folder.parents else str(folder)
    instead = "" if facts.layer == asked else f" (it has no {asked})"
    return (
        f"model     {name} ({origin}): {facts.parameters / 1e6:.1f}M parameters, {facts.dtype} on {facts.device}; "
        f"keys of {facts.dimension} from {facts.path}, {facts.layer}{instead}"
    )
