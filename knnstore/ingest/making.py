"""Making one segment: tokens first, keys second; each step goes on where an earlier run stopped."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from knnstore.atomic import free_bytes, storage_errors
from knnstore.corpus.tokens import PartSummary
from knnstore.datastore.arrays import create_array
from knnstore.datastore.segment import DOCUMENTS_TASK, LAYOUT_TASK, SAMPLES_TASK, Segment
from knnstore.datastore.sweeping import sweep_partial
from knnstore.holdout import Int64
from knnstore.ingest.assembly import assemble
from knnstore.ingest.plan import check_disk
from knnstore.ingest.tasks import (
    DecodeTask,
    KeyTask,
    SamplesTask,
    TokenTask,
    committed_summary,
    decoded_bytes,
    remove_parts,
    tokenise,
    write_keys,
    write_samples,
)
from knnstore.lm.spec import LmSpec
from knnstore.progress import Reporter
from knnstore.scheduling import Runner


class Making:
    """One run over one segment. ``scales_of``: a segment whose int8 scales it takes if they suit.

    Counts ``tasks_run`` by this run, ``tasks_kept`` that an earlier one had done, and ``seconds`` for ``rows`` keys.
    """

    def __init__(
        self, segment: Segment, spec: LmSpec, runner: Runner, reporter: Reporter, scales_of: Path | None = None
    ) -> None:
        self.segment = segment
        self.tasks_run = self.tasks_kept = self.rows = 0
        self.seconds = 0.0
        self._spec = spec
        self._runner = runner
        self._reporter = reporter
        self._scales_of = scales_of

    @property
    def tokenised(self) -> bool:
        """Whether the documents, values and held-out tokens are there, so that only keys are left to make."""
        return self.segment.commits.find(DOCUMENTS_TASK) is not None

    def tokenise(self, tasks: list[TokenTask], choose: Callable[[Any], Int64]) -> bool:
        """Write documents, values and held-out tokens; False, and nothing is written, if there isn't one token.

        ``choose``: see ``assemble``.
        """
        sweep_partial(self.segment.root)
        if not self.tokenised:
            if not self._tokenise(tasks):
                return False
            assemble(self.segment, len(tasks), choose, self._decoded_bytes)
        remove_parts(self.segment.root)
        table = self.segment.documents
        heldout, heldout_tokens = len(table.heldout()), int(table.heldout_tokens.sum())
        self._reporter.say(
            f"tokens    {self.segment.rows + heldout_tokens:,} in {count(len(table), 'document')}; "
            f"{heldout_tokens:,} of {count(heldout, 'document')} are held out to measure on"
        )
        return True

    def write_keys(self) -> None:
        """Compute the keys that aren't there."""
        segment = self.segment
        tasks = [KeyTask(segment.root.absolute(), self._spec, chunk) for chunk in range(segment.chunks)]
        todo = [task for task in tasks if segment.commits.find(task.name) is None]
        check_disk(segment, len(todo), free_bytes(segment.root))
        if segment.commits.find(SAMPLES_TASK) is None:
            shape = (segment.rows, segment.dimension)
            path = segment.array_path("keys")
            files = create_array(path, shape, segment.plan.chunk_rows, segment.key_dtype, "keys")
            segment.commits.commit(LAYOUT_TASK, files)
            list(self._runner.run(write_samples, [SamplesTask(segment.root.absolute(), self._spec, self._scales_of)]))
        self._tally(len(todo), len(tasks) - len(todo))
        ranges = [segment.chunk_range(task.chunk) for task in todo]
        waiting = sum(end - begin for begin, end in ranges)
        started = time.perf_counter()
        with self._reporter.bar("keys", segment.rows, "tokens", segment.rows - waiting) as advance:
            for rows in self._runner.run(write_keys, todo):
                advance(rows)
        self.rows += waiting
        self.seconds += time.perf_counter() - started
        sweep_partial(segment.root)
        remove_parts(segment.root)  # a second copy of a task, on a worker that was frozen, may have come late

    def _tokenise(self, tasks: list[TokenTask]) -> bool:
        segment = self.segment
        with storage_errors("make", segment.root):
            (segment.root / "parts").mkdir(exist_ok=True)
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
        return any(summary.tokens for summary in summaries)

    def _decoded_bytes(self, texts: tuple[tuple[int, ...], ...]) -> list[int]:
        return next(iter(self._runner.run(decoded_bytes, [DecodeTask(self._spec, texts)])))

    def _tally(self, run: int, kept: int) -> None:
        self.tasks_run += run
        self.tasks_kept += kept


def count(number: int, noun: str) -> str:
    """``1 document``, ``2,000 documents``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _left_out(summaries: list[PartSummary]) -> str:
    counts = {
        "empty": sum(summary.empty for summary in summaries),
        "skipped as unreadable": sum(summary.skipped for summary in summaries),
    }
    told = [f"{count(number, 'document')} {what}" for what, number in counts.items() if number]
    if too_long := sum(summary.too_long for summary in summaries):
        told.append(f"{count(too_long, 'pair')} longer than the LM takes")
    if replaced := sum(summary.replaced for summary in summaries):
        told.append(f"{count(replaced, 'undecodable character')} replaced")
    return f"          left out: {', '.join(told)}" if told else ""
