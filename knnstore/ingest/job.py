"""The ingest job: plan, tokenise, assemble, compute keys; each step goes on where an earlier run stopped."""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from knnstore.atomic import TEMPORARY_SUFFIX, free_bytes, make_folder, storage_errors, write_json
from knnstore.corpus.sources import find_sources, fingerprint
from knnstore.corpus.tokens import PartSummary, plan_parts
from knnstore.datastore.arrays import create_array
from knnstore.datastore.commits import CommitLog
from knnstore.datastore.history import publish
from knnstore.datastore.locking import LOCK_FILE, writing
from knnstore.datastore.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest, load_manifest, save_manifest
from knnstore.datastore.segment import PLAN_FILE, Segment, SegmentPlan
from knnstore.datastore.store import default_store, segment_root, store_path
from knnstore.errors import CorpusError, MismatchError, UsageError
from knnstore.ingest.assembly import DOCUMENTS, assemble
from knnstore.ingest.plan import IngestOptions, check_disk, check_memory, differences, segment_plan
from knnstore.ingest.tasks import (
    SAMPLES,
    DecodeTask,
    KeyTask,
    TokenTask,
    committed_summary,
    decoded_bytes,
    describe_model,
    remove_parts,
    tokenise,
    write_keys,
    write_samples,
)
from knnstore.lm.spec import SHIPPED_MODELS, LmFacts, LmSpec, default_model, resolve_model
from knnstore.progress import Reporter
from knnstore.records import to_json
from knnstore.scheduling import Runner
from knnstore.sizes import format_size

_SEGMENT = "0000"


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did.

    ``bytes``: of the finished store on disk. ``tokens_per_second``: keys made a second by this run, 0 if there were
    none left to make. ``tasks_run`` counts this run's tasks, ``tasks_kept`` those that an earlier run had done.
    """

    store: Path
    documents: int
    rows: int
    heldout_documents: int
    heldout_tokens: int
    bytes: int
    tokens_per_second: float
    tasks_run: int
    tasks_kept: int


def ingest(options: IngestOptions, runner: Runner, reporter: Reporter | None = None) -> IngestReport:
    """Make a store of a corpus, or finish one that an interrupted run began.

    The same call after an interruption redoes only the tasks that were in flight and leaves the very bytes of an
    uninterrupted run. Raises UsageError, StoreError or ResourceError with the next step in the message.
    """
    reporter = reporter or Reporter()
    found = find_sources(options.corpus)
    ignored = f" ({_count(found.ignored, 'file')} of other kinds left out)" if found.ignored else ""
    size = format_size(sum(source.bytes for source in found.sources))
    reporter.say(f"corpus    {_count(len(found.sources), 'file')}, {size}{ignored}")
    model = options.model or default_model()
    folder = resolve_model(model)
    spec = LmSpec(str(folder.resolve()), options.key, options.dtype, options.device)
    facts = next(iter(runner.run(describe_model, [spec])))
    reporter.say(_model_line(model, folder, facts, options.key))
    plan = segment_plan(options, facts, fingerprint(found.sources))
    check_memory(options, facts, plan)
    root = store_path(options.store or default_store(options.corpus[0]))
    make_folder(root)
    with writing(root):
        here = Path.cwd()
        runner.require_shared(root, [folder, here / found.sources[0].path])
        segment = _open_segment(root, plan, overwrite=options.overwrite)
        sources = [replace(source, folder=str(here)) for source in found.sources]
        place = segment.root.absolute()
        tasks = [TokenTask(place, spec, part, options.reading) for part in plan_parts(sources)]
        return _Job(root, segment, spec, runner, reporter).run(tasks)


class _Job:
    """One run over one segment."""

    def __init__(self, root: Path, segment: Segment, spec: LmSpec, runner: Runner, reporter: Reporter) -> None:
        self._root = root
        self._segment = segment
        self._spec = spec
        self._runner = runner
        self._reporter = reporter
        self._tasks_run = 0
        self._tasks_kept = 0

    def run(self, token_tasks: list[TokenTask]) -> IngestReport:
        segment = self._segment
        _sweep(segment.root)
        if segment.commits.find(DOCUMENTS) is None:
            self._tokenise(token_tasks)
            assemble(segment, len(token_tasks), self._decoded_bytes)
        remove_parts(segment.root)
        heldout, heldout_tokens = segment.documents.heldout(), int(segment.documents.heldout_tokens.sum())
        self._reporter.say(
            f"tokens    {segment.rows + heldout_tokens:,} in {_count(len(segment.documents), 'document')}; "
            f"{heldout_tokens:,} of {_count(len(heldout), 'document')} are held out to measure on"
        )
        if segment.rows == 0:
            raise CorpusError("every token is held out and none is left to store: give a smaller --holdout")
        made, seconds = self._write_keys()
        _sweep(segment.root)
        remove_parts(segment.root)  # a second copy of a task, on a worker that was frozen, may have come late
        self._publish()
        return IngestReport(
            store=self._root,
            documents=len(segment.documents),
            rows=segment.rows,
            heldout_documents=len(heldout),
            heldout_tokens=heldout_tokens,
            bytes=sum(path.stat().st_size for path in segment.root.rglob("*") if path.is_file()),
            tokens_per_second=made / seconds if made else 0.0,
            tasks_run=self._tasks_run,
            tasks_kept=self._tasks_kept,
        )

    def _publish(self) -> None:
        segment, present = self._segment, load_manifest(self._root)
        if segment.root.name in present.segments:
            return
        stored = int((segment.documents.tokens > 0).sum())
        what = f"add {_count(stored, 'document')}, {segment.rows:,} keys"
        state = replace(present, segments=(*present.segments, segment.root.name))
        publish(self._root, state, "ingest", what, documents=stored, keys=segment.rows)

    def _tokenise(self, tasks: list[TokenTask]) -> None:
        segment = self._segment
        make_folder(segment.root / "parts")
        kept = {task.name: summary for task in tasks if (summary := committed_summary(segment, task))}
        todo = [task for task in tasks if task.name not in kept]
        summaries = list(kept.values())
        total = sum(source.bytes for task in tasks for source in task.part.sources)
        with self._reporter.bar("tokens", total, "B", sum(summary.bytes for summary in summaries)) as advance:
            for summary in self._runner.run(tokenise, todo):
                summaries.append(summary)
                advance(summary.bytes)
        self._tally(len(todo), len(kept))
        if left_out := _left_out(summaries):
            self._reporter.say(left_out)
        if not any(summary.tokens for summary in summaries):
            raise CorpusError("the corpus holds no text: every document is empty or was skipped; give other files")

    def _write_keys(self) -> tuple[int, float]:
        """Rows written by this run, and the seconds that it took."""
        segment = self._segment
        tasks = [KeyTask(segment.root.absolute(), self._spec, chunk) for chunk in range(segment.chunks)]
        todo = [task for task in tasks if segment.commits.find(task.name) is None]
        check_disk(segment, len(todo), free_bytes(segment.root))
        if segment.commits.find(SAMPLES) is None:
            shape = (segment.rows, segment.dimension)
            path = segment.array_path("keys")
            files = create_array(path, shape, segment.plan.chunk_rows, segment.key_dtype, "keys")
            segment.commits.commit("layout", files)
            list(self._runner.run(write_samples, [KeyTask(segment.root.absolute(), self._spec, 0)]))
        self._tally(len(todo), len(tasks) - len(todo))
        ranges = [segment.chunk_range(task.chunk) for task in todo]
        waiting = sum(end - begin for begin, end in ranges)
        started = time.perf_counter()
        with self._reporter.bar("keys", segment.rows, "tokens", segment.rows - waiting) as advance:
            for rows in self._runner.run(write_keys, todo):
                advance(rows)
        return waiting, time.perf_counter() - started

    def _decoded_bytes(self, texts: tuple[tuple[int, ...], ...]) -> list[int]:
        return next(iter(self._runner.run(decoded_bytes, [DecodeTask(self._spec, texts)])))

    def _tally(self, run: int, kept: int) -> None:
        self._tasks_run += run
        self._tasks_kept += kept


def _open_segment(root: Path, plan: SegmentPlan, *, overwrite: bool) -> Segment:
    """The segment of ``plan``, begun or made; refuses a store that holds anything else."""
    path = segment_root(root, _SEGMENT)
    others = [entry for entry in root.iterdir() if entry.name != LOCK_FILE]
    begun = (root / MANIFEST_FILE).exists() or {entry.name for entry in others} <= {"segments"}
    if not begun:
        raise UsageError(f"{root} is no store but isn't empty: choose another name with --store")
    if overwrite:
        with storage_errors("clear", root):
            for entry in others:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if (path / PLAN_FILE).exists():
        _refuse_others(root, Segment(path).plan, plan)
    CommitLog(path / "commits", path, "").prepare()
    write_json(path / PLAN_FILE, to_json(plan))
    if not (root / MANIFEST_FILE).exists():
        save_manifest(root, Manifest("knnstore", FORMAT_VERSION, plan.model, plan.key, (), None))
    return Segment(path)


def _refuse_others(root: Path, found: SegmentPlan, wanted: SegmentPlan) -> None:
    told = differences(found, wanted)
    if not told:
        return
    finished = (root / MANIFEST_FILE).exists() and load_manifest(root).segments
    state = "holds another corpus or other settings" if finished else "was begun with another corpus or other settings"
    raise MismatchError(
        f"{root} {state}: {'; '.join(told)}. "
        "Run with the same ones, choose another --store, or discard it with --overwrite"
    )


def _sweep(root: Path) -> None:
    """Remove what a killed writer left half-written: Zarr's partial chunks and our own files set aside."""
    with storage_errors("clean", root):
        for path in root.rglob("*"):
            if path.suffix in (".partial", TEMPORARY_SUFFIX):
                path.unlink(missing_ok=True)


def _model_line(name: str, folder: Path, facts: LmFacts, asked: str) -> str:
    origin = "shipped with knnstore" if SHIPPED_MODELS in folder.parents else str(folder)
    instead = "" if facts.layer == asked else f" (it has no {asked})"
    return (
        f"model     {name} ({origin}): {facts.parameters / 1e6:.1f}M parameters, {facts.dtype} on {facts.device}; "
        f"keys of {facts.dimension} from {facts.path}, {facts.layer}{instead}"
    )


def _left_out(summaries: list[PartSummary]) -> str:
    counts = {
        "empty": sum(summary.empty for summary in summaries),
        "skipped as unreadable": sum(summary.skipped for summary in summaries),
    }
    told = [f"{_count(count, 'document')} {what}" for what, count in counts.items() if count]
    if replaced := sum(summary.replaced for summary in summaries):
        told.append(f"{_count(replaced, 'undecodable character')} replaced")
    return f"          left out: {', '.join(told)}" if told else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
