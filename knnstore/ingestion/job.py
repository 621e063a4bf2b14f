"""The ingest job: a store of a corpus, made, finished, or brought up to date."""

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
    """What an ingest did, and the store as it is now: ``documents`` and ``rows`` that aren't removed, ``bytes`` of all
    its segments.

    ``added``, ``changed`` and ``unchanged`` count the corpus' documents; ``copies`` those that were left out because an
    added one has the same text; ``withheld`` those that were removed from the
    store on purpose and stay out; ``gone`` those of the store that the corpus has no more, of which ``pruned`` were
    removed. ``new_rows``: keys added. ``tokens_per_second``: keys made a second by this run, 0 if there were none left
    to make. ``tasks_run`` counts this run's tasks, ``tasks_kept`` those that an earlier run had done.
    ``file_types`` and ``left_out`` count the corpus' files that were read, and that were not, by type;
    ``linked_files`` those that were read through links out of the corpus.
    Of the documents that were tokenised: ``empty`` and ``skipped`` ones that were left out, ``replaced`` characters.
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
    """Make a store of a corpus, finish one that an interrupted run began, or add what a finished one doesn't have.

    Documents are known by the digests of their texts, so that only new ones go through the LM; one with the name of a
    stored document replaces it. The same call after an interruption redoes only the tasks that were in flight and
    leaves the very bytes of an uninterrupted run. Raises UsageError, StoreError or ResourceError with the next step in
    the message.
    """
    reporter, root = job.reporter, store_path(options.store or default_store(options.named[0]))
    require_free(root)
    found = options.files()
    reporter.say(f"corpus    {_corpus_line(found, options)}")
    model = options.model or default_model()
    folder = resolve_model(model)
    spec = LmSpec(str(folder.resolve()), options.layer, _dtype(root, options), options.device)
    facts = job.run_one(describe_model, spec)
    spec = replace(spec, dtype=facts.dtype)  # every task's, whatever suits the processor that it runs on
    reporter.say(_model_line(model, folder, facts, options.layer))
    if facts.bfloat16_speed is not None:
        subject = "" if facts.dtype == "bfloat16" else "bfloat16 runs at only "
        speed = f"{facts.bfloat16_speed:.2f} × the speed of float32 on this machine"
        reporter.say(f"dtype     {facts.dtype}: {subject}{speed}")
    plan = segment_plan(options, facts, fingerprint(found))
    check_memory(options, facts, plan, len(found), job)
    make_folder(root)
    with editing(root, reporter.say) as edit:
        job.runner.require_shared(root, [folder, Path(found[0].folder) / found[0].path])
        open_store(edit, plan.model, plan.key, parameter="store", overwrite=options.overwrite)
        begun = _begun(root)
        if begun is not None:
            allow = options.allow_mismatch
            partner = partner_of(begun, plan, spec, job, allow=allow)
            plan, spec = partner.plan, partner.spec
        if begun is not None and edit.state.segments:
            done = Append(edit, options, _as_stored(root, plan, begun), spec, found, job).run()
        else:
            plan = plan if begun is None else continued(begun.plan, plan, reporter.say)
            segment = _first_segment(edit, plan, lambda: padded(plan, spec, job))
            done = _make_first(edit, Making(segment, spec, job), plan_parts(found), options)
        return _report(edit.store, done, found)


def _dtype(root: Path, options: IngestOptions) -> str:
    """The LM's dtype: as asked for, else that of the keys which the store has or was begun with."""
    if options.dtype != "auto" or options.overwrite:
        return options.dtype
    begun = _begun(root) if (root / MANIFEST_FILE).exists() else None
    stored = [] if begun is None else dtypes_of(begun.plan)
    return stored[0] if stored else "auto"


def _as_stored(root: Path, plan: SegmentPlan, begun: Segment) -> SegmentPlan:
    """The plan of an append: the store's choice of what spellings of special tokens are.

    Raises MismatchError where ``special_tokens`` asks for another.
    """
    stored = begun.plan.special_tokens
    if plan.special_tokens and stored is False:
        raise MismatchError(
            f"{root} takes spellings of special tokens as ordinary text: leave out {option('special_tokens', True)}, "
            f"{other_store()}"
        )
    return replace(plan, special_tokens=stored)


def _make_first(edit: Edit, making: Making, parts: Parts, options: IngestOptions) -> Appended:
    """Make the first segment of a store and publish it."""
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
        file_types={one.label: one.files for one in files.taken},
        left_out={one.label: one.files for one in files.left_out},
        linked_files=files.outside,
    )


def _begun(root: Path) -> Segment | None:
    """The first segment of the store, made or begun; None if nothing of it is there."""
    if (state := load_manifest(root)).segments:
        return Datastore(root, state).segments[0]
    path = next((path for path in unfinished(root) if (path / SEGMENT_PLAN).is_file()), None)
    return None if path is None else Segment(path)


def _first_segment(edit: Edit, plan: SegmentPlan, complete: Callable[[], SegmentPlan]) -> Segment:
    """The first segment, begun or made; refuses one that was begun with another plan.

    One that an older version began keeps its plan if its documents are chosen; else what it tokenised is taken over.
    ``complete()`` gives the plan with what is measured on the LM, for a segment that has no keys yet.
    """
    begun, older = _begun(edit.root), older_plan(plan)
    if begun is not None and _only_reads_otherwise(begun, plan):
        # it stopped at a document that it couldn't read, and said how it can be read: nothing but tokens is lost
        remove_tree(begun.root)
        begun = None
    if begun is None:
        plan = complete()
    elif begun.plan == older:
        # parts that are tokenised already have special tokens where the text spells them
        plan = older if begun.commits.find(DOCUMENTS_TASK) else replace(complete(), special_tokens=None)
    else:
        special = None if begun.plan.special_tokens is None else plan.special_tokens
        plan = replace(plan, padding=begun.plan.padding, special_tokens=special)
        told = differences(begun.plan, plan)
        if told:
            dtype, _, device = begun.plan.compute.partition(" on ")
            compute = f" ({option('dtype', dtype)} {option('device', device)})"
            same = compute if begun.plan.compute != plan.compute else ""
            raise MismatchError(
                f"{edit.root} was begun with another corpus or other settings: {'; '.join(told)}. "
                f"Run with the same ones{same}, {other_store()}"
            )
    segment = SegmentWriter.begin(own_segment(edit, begun.root if begun else None), plan).segment
    segment.commits.adopt(TOKENS_TASKS, record_fingerprint(older))
    return segment


def _only_reads_otherwise(begun: Segment, plan: SegmentPlan) -> bool:
    """Whether a segment whose documents aren't there yet was begun by the same plan but for how text is read."""
    then = begun.plan
    same = replace(plan, padding=then.padding, special_tokens=then.special_tokens)
    reads_alike = (then.errors, then.text_field) == (plan.errors, plan.text_field)
    if reads_alike or then != replace(same, errors=then.errors, text_field=then.text_field):
        return False
    return begun.commits.find(DOCUMENTS_TASK) is None


def _corpus_line(found: Listing, options: IngestOptions) -> str:
    files = count(len(found) + len(options.source), "file")
    outside = f", {count(found.outside, 'file')} of them by links out of the corpus" if found.outside else ""
    left_out = f"; left out {describe(found.left_out)}" if found.left_out else ""
    size = f"{format_size(found.bytes)}{' of pairs' if options.pairs else ''}"
    return f"{files}, {size}: {describe(found.taken)}{outside}{left_out}"


def _model_line(name: str, folder: Path, facts: LmFacts, asked: str) -> str:
    origin = "shipped with knnstore" if SHIPPED_MODELS in folder.parents else str(folder)
    instead = "" if facts.layer == asked else f" (it has no {asked})"
    return (
        f"model     {name} ({origin}): {facts.parameters / 1e6:.1f}M parameters, {facts.dtype} on {facts.device}; "
        f"keys of {facts.dimension} from {facts.path}, {facts.layer}{instead}"
    )
