"""Append to a store: documents that the store lacks are written to a new segment.

While the segment is being built, its folder ``append/`` lists the documents that it will replace, so that it can be
finished and published even if the corpus has changed in the meantime.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.arrays import Int64
from knnstore.corpus.listing import Source
from knnstore.datastore.adopting import own_segment
from knnstore.datastore.edits import Edit
from knnstore.datastore.layout import SEGMENT_PLAN
from knnstore.datastore.removed import REMOVED_SCHEMA, Removed, joined, removed_in, removed_table, save_removed
from knnstore.datastore.segment import Segment, SegmentPlan, keys_task
from knnstore.datastore.segmentwriter import SegmentWriter
from knnstore.datastore.store import Datastore
from knnstore.datastore.sweeping import remove_tree, unfinished
from knnstore.datastore.tables import write_table
from knnstore.datastore.takedowns import load_takedowns
from knnstore.errors import CorruptStoreError, MismatchError
from knnstore.files import read_raw
from knnstore.holdout import MOST_TOKENS, Repeats, choose_more_heldout
from knnstore.ingestion.assembly import Choose
from knnstore.ingestion.copies import superfluous_of
from knnstore.ingestion.making import Making, count, padded
from knnstore.ingestion.partner import continued
from knnstore.ingestion.plan import IngestOptions, differences, dtypes_of, follows
from knnstore.ingestion.survey import (
    Differences,
    compare,
    digest_of,
    is_among,
    names_of,
    parts_to_add,
    replaced_heldout,
    survey_corpus,
)
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import Job
from knnstore.wording import option

FOLDER = "append"
# Differences that can't be allowed: without a common width, type or vocabulary the keys can't be compared.
_NEVER = ("key.dimension ", "key_dtype ", "model.vocabulary ")


@dataclass(frozen=True, slots=True)
class Appended:
    """The result of an append: numbers of documents by what happened to them, and the runs that made keys."""

    added: int
    changed: int
    unchanged: int
    copies: int
    withheld: int
    gone: int
    pruned: int
    makings: tuple[Making, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    """Adds ``sources`` to a finished store, according to ``plan``."""

    edit: Edit
    options: IngestOptions
    plan: SegmentPlan
    spec: LmSpec
    sources: Sequence[Source]
    job: Job

    def run(self) -> Appended:
        """Restore lost keys, finish an interrupted append, and publish all new documents in one state."""
        store = self.edit.store
        self._require_same_keys(store.segments[0])
        makings = [making for segment in store.segments if (making := self._repair(segment))]
        corpus = survey_corpus(self.sources, self.options.reading, self.job)
        changes = self._compare(store, corpus)
        if earlier := self._finish_earlier(replace(self.plan, sources=digest_of(changes))):
            makings += earlier
            store = self.edit.store
            changes = self._compare(store, corpus)
        making = self._add(store, changes) if changes.new.any() else None
        gone = changes.gone if self.options.prune else {}
        replaced = changes.replaced if making or not changes.new.any() else {}
        if making or gone or replaced:
            self._publish(making.segment if making else None, replaced, gone)
        self.edit.give_up(FOLDER)
        return Appended(
            added=changes.added if making else 0,
            changed=changes.changed if replaced else 0,
            unchanged=changes.unchanged,
            copies=changes.copies,
            withheld=changes.withheld,
            gone=sum(map(len, changes.gone.values())),
            pruned=sum(map(len, gone.values())),
            makings=(*makings, *([making] if making else [])),
        )

    def _compare(self, store: Datastore, corpus: Any) -> Differences:
        takedowns = np.empty(0, "S32") if self.options.readmit else load_takedowns(self.edit.root)
        return compare(store, corpus, self.options.scope(), takedowns)

    def _add(self, store: Datastore, changes: Differences) -> Making | None:
        """Make the segment of the new documents; return None if they have no tokens."""
        making = self._making(self._begin(changes))
        making.forget_damaged()
        parts = parts_to_add(self.sources, changes)
        remaining = store.masked(changes.replaced)
        if not making.tokenise(parts, self.options.reading, self._heldout(store, changes), remaining):
            return None
        making.write_keys()
        return making

    def _making(self, segment: Segment) -> Making:
        first = self.edit.store.segments[0].root
        # the identity of this run's plan is wrong for a segment that was deliberately made by another LM
        same_model = replace(segment.plan.model, name=self.plan.model.name) == self.plan.model
        spec = self.spec if same_model else replace(self.spec, identity=None)
        return Making(segment, spec, self.job, first)

    def _require_same_keys(self, first: Segment) -> None:
        existing, wanted = first.plan, self.plan
        same = replace(wanted, model=replace(wanted.model, name=existing.model.name))
        mismatches = [each for each in differences(existing, same) if each.startswith(("model.", "key.", "key_dtype "))]
        stored, [dtype] = dtypes_of(existing), dtypes_of(wanted)
        if stored and dtype not in stored:
            mismatches.append(f"keys made in {stored[0]} (now {dtype}): give {option('dtype', stored[0])} or omit it")
        if not mismatches:
            return
        message = f"{self.edit.root} holds keys of other settings: {'; '.join(mismatches)}"
        allowed = option("allow_mismatch", True)
        if not self.options.allow_mismatch:
            raise MismatchError(
                f"{message}. Run with the same settings, choose another {option('store')}, discard it with "
                f"{option('overwrite', True)}, or give {allowed} to accept this"
            )
        if never := [each for each in mismatches if each.startswith(_NEVER)]:
            raise MismatchError(f"{self.edit.root} can't hold both, even with {allowed}: {'; '.join(never)}")
        self.job.reporter.say(f"mismatch  {message}")

    def _repair(self, segment: Segment) -> Making | None:
        """Recompute chunks of keys that a finished segment has lost; return None if it is complete."""
        if segment.order.lists is not None:  # its keys are stored only in the index
            return None
        making, commits = self._making(segment), segment.commits
        if len(commits.find_all(map(keys_task, range(segment.chunks)))) == segment.chunks:
            return None
        if self.plan.compute not in segment.plan.compute.split(", "):
            raise MismatchError(
                f"{segment.root} lacks keys that were made in {segment.plan.compute}, not {self.plan.compute}: "
                f"make them with the same {option('dtype')} and {option('device')}"
            )
        making.write_keys()
        return making

    def _finish_earlier(self, wanted: SegmentPlan) -> list[Making]:
        """Finish interrupted appends of documents other than those ``wanted`` now, if they only lack keys.

        Such a segment no longer needs the corpus, because its tokens are complete. Its keys may have cost hours, so it
        is published first; the corpus is then compared with the store again.
        """
        done = []
        for leftover in list(unfinished(self.edit.root)):
            if not (leftover / FOLDER).is_dir() or not (leftover / SEGMENT_PLAN).is_file():
                continue
            plan = Segment(leftover).plan
            if not follows(plan, wanted) and self._making(Segment(leftover)).tokenised and self._same_keys(plan):
                path = own_segment(self.edit, leftover)
                making = self._making(Segment(path))
                making.forget_damaged()
                if not making.tokenised:
                    continue
                self.job.reporter.say(
                    f"          first finishing the {making.segment.rows:,} keys of an interrupted run"
                )
                making.write_keys()
                self._publish(making.segment, _read_replaced(path), {})
                done.append(making)
        return done

    def _same_keys(self, plan: SegmentPlan) -> bool:
        """Return whether this run makes the same keys as a plan."""
        names = ("model", "key", "key_dtype", "compute")
        return all(getattr(plan, name) == getattr(self.plan, name) for name in names)

    def _begin(self, changes: Differences) -> Segment:
        """Return the new segment: the one that an interrupted run of the same plan left, or else an empty one."""
        plan = replace(self.plan, sources=digest_of(changes))
        path = None
        for leftover in list(unfinished(self.edit.root)):
            if not (leftover / FOLDER).is_dir():
                continue
            if (leftover / SEGMENT_PLAN).is_file() and follows(Segment(leftover).plan, plan):
                path = own_segment(self.edit, leftover)
                continued(Segment(path).plan, plan, self.job.reporter.say)
            else:
                remove_tree(leftover)  # not fully tokenised, so little work is lost
        plan = Segment(path).plan if path else padded(plan, self.spec, self.job)
        path = path or own_segment(self.edit, None)
        write_table(_replaced_path(path), removed_table(changes.replaced))
        return SegmentWriter.begin(path, plan).segment

    def _heldout(self, store: Datastore, changes: Differences) -> Choose:
        """Return a function that chooses held-out tokens: of what replaces held-out text, and a share of the rest."""
        held = sum(int(s.documents.heldout_tokens[store.heldout(s)].sum()) for s in store.segments)
        replaced = replaced_heldout(store, changes)

        def choose(tokens: Int64, tables: Iterable[Any], repeats: Repeats | None) -> Int64:
            heldout, bound = np.zeros(len(tokens), np.int64), np.zeros(len(tokens), np.bool_)
            begin = 0
            for table in tables:
                names = names_of(table)
                for row in np.flatnonzero(is_among(names, list(replaced))).tolist():
                    part, own = replaced[names[row].as_py()], tokens[begin + row]
                    heldout[begin + row], bound[begin + row] = own if part is None else min(part, own), True
                begin += len(table)
            room = max(0, MOST_TOKENS - held)
            free = np.flatnonzero(~bound)
            of_free = (lambda some: repeats(free[some])) if repeats else None
            heldout[free] = choose_more_heldout(tokens[free], self.plan.holdout, room, of_free)
            return heldout

        return choose

    def _publish(self, segment: Segment | None, replaced: Removed, gone: Removed) -> None:
        store, state, notes = self.edit.store, self.edit.state, []
        replacements, pruned = (sum(map(len, documents.values())) for documents in (replaced, gone))
        facts = {"documents": 0, "keys": 0, "replaced": replacements, "pruned": pruned}
        if segment is not None:
            state = replace(state, segments=(*state.segments, segment.root.name))
            facts |= {"documents": len(segment.documents), "keys": segment.rows}
            notes.append(f"add {count(len(segment.documents), 'document')}, {segment.rows:,} keys")
        if replacements:
            what = "of them in place of older ones" if segment else "replaced by texts already in the store"
            notes.append(f"{replacements:,} {what}")
        if pruned:
            notes.append(f"remove {pruned:,} that are gone from the corpus")
        copies = {} if segment is None else superfluous_of(segment)
        every = joined(joined(store.removed, copies), joined(replaced, gone))
        removed = save_removed(self.edit.root, every, self.edit.epoch)
        self.edit.publish(replace(state, removed=removed), "ingest", ", ".join(notes), **facts)


def _read_replaced(segment: Path) -> Removed:
    path = _replaced_path(segment)
    try:
        return removed_in(pq.read_table(pa.BufferReader(read_raw(path)), schema=REMOVED_SCHEMA))
    except (OSError, pa.ArrowException) as error:
        raise CorruptStoreError(f"{path} can't be read: remove {segment} and run the ingest again ({error})") from error


def _replaced_path(segment: Path) -> Path:
    return segment / FOLDER / "replaced.parquet"
