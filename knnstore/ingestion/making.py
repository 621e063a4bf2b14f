"""Build one segment: tokens first, then keys. Each step resumes where an interrupted run stopped."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from knnstore.corpus.options import ReadOptions
from knnstore.corpus.parts import Parts
from knnstore.datastore.segment import DOCUMENTS_TASK, SAMPLES_TASK, Segment, SegmentPlan
from knnstore.datastore.segmentwriter import SegmentWriter
from knnstore.datastore.store import Datastore
from knnstore.diskspace import require_room, telling_need
from knnstore.files import make_folder
from knnstore.ingestion.assembly import Choose, assemble
from knnstore.ingestion.estimate import require_disk
from knnstore.ingestion.plan import key_bytes
from knnstore.ingestion.tasks import (
    DecodeTask,
    SamplesTask,
    TokenTask,
    committed_summaries,
    decoded_bytes,
    key_model_of,
    keys_stage,
    remove_parts,
    tokenise,
    write_samples,
)
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import Job
from knnstore.windows import Padding
from knnstore.wording import option


class Making:
    """One run over one segment. ``scales_of``: a segment whose int8 scales are reused if they fit.

    Counts ``tasks_run`` of this run and ``tasks_kept`` of earlier ones, the ``seconds`` for ``rows`` keys, and in the
    text ``empty``, ``skipped`` and ``too_long`` documents and ``replaced`` characters.
    """

    def __init__(self, segment: Segment, spec: LmSpec, job: Job, scales_of: Path | None = None) -> None:
        self.segment = segment
        self.tasks_run = self.tasks_kept = self.rows = 0
        self.seconds = 0.0
        self.empty = self.skipped = self.replaced = self.too_long = self.special_spellings = 0
        self._spec = spec
        self._job = job
        self._scales_of = scales_of

    def forget_damaged(self) -> None:
        """Discard tasks of earlier runs whose files differ from their checksums. Reads all files of the segment."""
        for damage in self.segment.commits.forget_damaged():
            self._job.reporter.say(f"          {damage}: it is rebuilt")

    @property
    def tokenised(self) -> bool:
        """Return whether the documents, values and held-out tokens are complete, so that only keys are missing."""
        return self.segment.commits.find(DOCUMENTS_TASK) is not None

    @property
    def copies(self) -> int:
        """Return the number of documents left out because an earlier one has the same text."""
        commit = self.segment.commits.find(DOCUMENTS_TASK)
        return int(commit.facts.get("copies", 0)) if commit else 0

    def tokenise(self, parts: Parts, reading: ReadOptions, choose: Choose, store: Datastore | None = None) -> bool:
        """Write documents, values and held-out tokens; return False, and write nothing, if there are no tokens.

        ``choose``: see ``Choose``; ``store``: the store that the segment is added to.
        """
        # about four bytes of text make an id of two bytes, stored twice: in a part and then in one array
        if not self.tokenised:
            with telling_need("The tokens of the text", lambda: parts.bytes):
                if not self._tokenise(parts, reading):
                    return False
                assemble(self.segment, len(parts), choose, self._decoded_bytes, store)
        remove_parts(self.segment.root)
        table = self.segment.documents
        heldout, heldout_tokens = len(table.heldout()), int(table.heldout_tokens.sum())
        self._job.reporter.say(
            f"tokens    {self.segment.rows + heldout_tokens:,} in {count(len(table), 'document')}; "
            f"{heldout_tokens:,} of {count(heldout, 'document')} are held out to measure on"
        )
        return True

    def write_keys(self) -> None:
        """Compute the missing keys."""
        segment, writer = self.segment, SegmentWriter(self.segment)
        stage = keys_stage(segment, self._spec)
        require_room(segment.root, key_bytes(segment, len(stage.missing)), f"{segment.rows:,} keys")
        with telling_need("The keys that are left", lambda: key_bytes(segment, len(stage.missing))):
            writer.lay_out_keys()
            if writer.lacks(SAMPLES_TASK):
                task = SamplesTask(segment.root.absolute(), self._spec, self._scales_of)
                self._job.run_one(write_samples, task)
            started = time.perf_counter()
            made = stage.resume(self._job)
            self.seconds += time.perf_counter() - started
        self._tally(len(made), len(stage.tasks) - len(made))
        self.rows += sum(task.rows for task in made)
        remove_parts(segment.root)  # a second copy of a task, on a worker that was frozen, may have written late

    def _tokenise(self, parts: Parts, reading: ReadOptions) -> bool:
        """Tokenise the parts of the corpus that earlier runs haven't; return whether there are any tokens.

        Each part is a task with temporary files and a commit of its own, so an interruption costs only running tasks.
        ``assemble`` then joins the parts, and ``remove_parts`` deletes them.
        """
        segment = self.segment
        make_folder(segment.root / "parts")
        kept = committed_summaries(segment, len(parts))
        todo = parts.without(kept)
        if todo:
            require_disk(segment, self._spec, todo, reading, self._job)
        summaries = list(kept.values())
        tasks = (TokenTask(segment.root.absolute(), self._spec, part, reading) for part in todo)
        with self._job.reporter.bar("tokens", parts.bytes, "B", sum(summary.bytes for summary in summaries)) as advance:
            for summary in self._job.runner.run(tokenise, tasks):
                summaries.append(summary)
                advance(summary.bytes)
        self._tally(len(todo), len(kept))
        self.empty = sum(summary.empty for summary in summaries)
        self.skipped = sum(summary.skipped for summary in summaries)
        self.replaced = sum(summary.replaced for summary in summaries)
        self.too_long = sum(summary.too_long for summary in summaries)
        self.special_spellings = sum(summary.special_spellings or 0 for summary in summaries)
        self._say_left_out()
        return any(summary.tokens for summary in summaries)

    def _say_left_out(self) -> None:
        counts = {"empty": self.empty, "skipped as unreadable": self.skipped}
        notes = [f"{count(number, 'document')} {what}" for what, number in counts.items() if number]
        if self.too_long:
            notes.append(f"{count(self.too_long, 'pair')} longer than the LM takes")
        if self.replaced:
            notes.append(f"{count(self.replaced, 'undecodable character')} replaced")
        if notes:
            self._job.reporter.say(f"          left out: {', '.join(notes)}")
        if self.special_spellings:
            ordinary = self.segment.plan.special_tokens is False
            other = f"ordinary text ({option('special_tokens', True)} makes tokens of them)"
            what = other if ordinary else "special tokens"
            spelled = count(self.special_spellings, "spelling")
            self._job.reporter.say(f"          {spelled} of special tokens in the text: taken as {what}")

    def _decoded_bytes(self, texts: tuple[tuple[int, ...], ...]) -> list[int]:
        return self._job.run_one(decoded_bytes, DecodeTask(self._spec, texts))

    def _tally(self, run: int, kept: int) -> None:
        self.tasks_run += run
        self.tasks_kept += kept


@dataclass(frozen=True, slots=True)
class PaddingTask:
    """Determine how windows of up to ``context`` positions may share a batch."""

    spec: LmSpec
    context: int


def find_padding(task: PaddingTask) -> Padding:
    """Return how windows may share a batch without changing their keys."""
    return key_model_of(task.spec).padding(task.context)


def padded(plan: SegmentPlan, spec: LmSpec, job: Job) -> SegmentPlan:
    """Return the plan of a new segment with the padding that the LM allows."""
    padding = job.run_one(find_padding, PaddingTask(spec, plan.key.context))
    if padding != "ladder":
        shared = "only windows of equal length share" if padding == "exact" else "no windows share"
        job.reporter.say(f"batches   {shared} a batch: this LM's results depend on the rest of it")
    return replace(plan, padding=padding)


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 document``, ``2,000 documents``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
