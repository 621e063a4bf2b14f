"""Adding to a store: what the corpus has and the store doesn't goes into a segment of its own.

While that segment is being made, its folder ``append/`` holds what it will replace, so that it can be finished and
published even if the corpus has changed in the meantime.
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
# Differences between which there is no distance, or no common list of tokens.
_NEVER = ("key.dimension ", "key_dtype ", "model.vocabulary ")


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: documents by what became of them, and the runs that made keys."""

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
    """Adds ``sources`` to the writer's store, which is finished, as ``plan`` says."""

    edit: Edit
    options: IngestOptions
    plan: SegmentPlan
    spec: LmSpec
    sources: Sequence[Source]
    job: Job

    def run(self) -> Appended:
        """Repair what was lost, finish what an earlier run began, and add what is new, in one state."""
        store = self.edit.store
        self._require_same_keys(store.segments[0])
        makings = [making for segment in store.segments if (making := self._mend(segment))]
        corpus = survey_corpus(self.sources, self.options.reading, self.job)
        found = self._compare(store, corpus)
        if earlier := self._finish_earlier(replace(self.plan, sources=digest_of(found))):
            makings += earlier
            store = self.edit.store
            found = self._compare(store, corpus)
        making = self._add(store, found) if found.new.any() else None
        gone = found.gone if self.options.prune else {}
        replaced = found.replaced if making or not found.new.any() else {}
        if making or gone or replaced:
            self._publish(making.segment if making else None, replaced, gone)
        self.edit.give_up(FOLDER)
        return Appended(
            added=found.added if making else 0,
            changed=found.changed if replaced else 0,
            unchanged=found.unchanged,
            copies=found.copies,
            withheld=found.withheld,
            gone=sum(map(len, found.gone.values())),
            pruned=sum(map(len, gone.values())),
            makings=(*makings, *([making] if making else [])),
        )

    def _compare(self, store: Datastore, corpus: Any) -> Differences:
        takedowns = np.empty(0, "S32") if self.options.readmit else load_takedowns(self.edit.root)
        return compare(store, corpus, self.options.scope(), takedowns)

    def _add(self, store: Datastore, found: Differences) -> Making | None:
        """Make the segment of the new documents; None if they haven't a token."""
        making = self._making(self._begin(found))
        making.forget_damaged()
        parts = parts_to_add(self.sources, found)
        shown = store.masked(found.replaced)
        if not making.tokenise(parts, self.options.reading, self._heldout(store, found), shown):
            return None
        making.write_keys()
        return making

    def _making(self, segment: Segment) -> Making:
        first = self.edit.store.segments[0].root
        # in a segment that another LM made, on purpose, this one isn't known by its name
        own = replace(segment.plan.model, name=self.plan.model.name) == self.plan.model
        spec = self.spec if own else replace(self.spec, identity=None)
        return Making(segment, spec, self.job, first)

    def _require_same_keys(self, first: Segment) -> None:
        found, wanted = first.plan, self.plan
        same = replace(wanted, model=replace(wanted.model, name=found.model.name))
        told = [what for what in differences(found, same) if what.startswith(("model.", "key.", "key_dtype "))]
        stored, [dtype] = dtypes_of(found), dtypes_of(wanted)
        if stored and dtype not in stored:
            told.append(f"keys made in {stored[0]} (now {dtype}): give {option('dtype', stored[0])}, or leave it out")
        if not told:
            return
        sentence = f"{self.edit.root} holds keys of other settings: {'; '.join(told)}"
        allowed = option("allow_mismatch", True)
        if not self.options.allow_mismatch:
            raise MismatchError(
                f"{sentence}. Run with the same ones, choose another {option('store')}, discard it with "
                f"{option('overwrite', True)}, or give {allowed} if you mean it"
            )
        if never := [what for what in told if what.startswith(_NEVER)]:
            raise MismatchError(f"{self.edit.root} can't hold both, {allowed} or not: {'; '.join(never)}")
        self.job.reporter.say(f"mismatch  {sentence}")

    def _mend(self, segment: Segment) -> Making | None:
        """Make chunks of keys again that were lost from a finished segment."""
        if segment.order.lists is not None:  # it has none of its own
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
        """Finish an interrupted append of other documents than are ``wanted`` now, if only keys are left to make."""
        done = []
        for begun in list(unfinished(self.edit.root)):
            if not (begun / FOLDER).is_dir() or not (begun / SEGMENT_PLAN).is_file():
                continue
            found = Segment(begun).plan
            if not follows(found, wanted) and self._making(Segment(begun)).tokenised and self._same_keys(found):
                path = own_segment(self.edit, begun)
                making = self._making(Segment(path))
                making.forget_damaged()
                if not making.tokenised:
                    continue
                self.job.reporter.say(
                    f"          first the {making.segment.rows:,} keys that an earlier run began with"
                )
                making.write_keys()
                self._publish(making.segment, _read_replaced(path), {})
                done.append(making)
        return done

    def _same_keys(self, found: SegmentPlan) -> bool:
        """Whether this run makes the keys of a plan, whose tokens are there."""
        names = ("model", "key", "key_dtype", "compute")
        return all(getattr(found, name) == getattr(self.plan, name) for name in names)

    def _begin(self, found: Differences) -> Segment:
        """The folder of the new segment, begun by an earlier run or made."""
        plan = replace(self.plan, sources=digest_of(found))
        path = None
        for begun in list(unfinished(self.edit.root)):
            if not (begun / FOLDER).is_dir():
                continue
            if (begun / SEGMENT_PLAN).is_file() and follows(Segment(begun).plan, plan):
                path = own_segment(self.edit, begun)
                continued(Segment(path).plan, plan, self.job.reporter.say)
            else:
                remove_tree(begun)  # not tokenised yet: little or nothing is lost
        plan = Segment(path).plan if path else padded(plan, self.spec, self.job)
        path = path or own_segment(self.edit, None)
        write_table(_replaced_path(path), removed_table(found.replaced))
        return SegmentWriter.begin(path, plan).segment

    def _heldout(self, store: Datastore, found: Differences) -> Choose:
        """Who is held out: what replaces held-out text, and a share of the rest."""
        held = sum(int(s.documents.heldout_tokens[store.heldout(s)].sum()) for s in store.segments)
        replaced = replaced_heldout(store, found)

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
        store, state, told = self.edit.store, self.edit.state, []
        replaces, goes = (sum(map(len, documents.values())) for documents in (replaced, gone))
        facts = {"documents": 0, "keys": 0, "replaced": replaces, "pruned": goes}
        if segment is not None:
            state = replace(state, segments=(*state.segments, segment.root.name))
            facts |= {"documents": len(segment.documents), "keys": segment.rows}
            told.append(f"add {count(len(segment.documents), 'document')}, {segment.rows:,} keys")
        if replaces:
            one = "of them in place of older ones" if segment else "replaced by texts that are there already"
            told.append(f"{replaces:,} {one}")
        if goes:
            told.append(f"remove {goes:,} that are gone from the corpus")
        copies = {} if segment is None else superfluous_of(segment)
        every = joined(joined(store.removed, copies), joined(replaced, gone))
        removed = save_removed(self.edit.root, every, self.edit.epoch)
        self.edit.publish(replace(state, removed=removed), "ingest", ", ".join(told), **facts)


def _read_replaced(segment: Path) -> Removed:
    path = _replaced_path(segment)
    try:
        return removed_in(pq.read_table(pa.BufferReader(read_raw(path)), schema=REMOVED_SCHEMA))
    except (OSError, pa.ArrowException) as error:
        raise CorruptStoreError(f"{path} can't be read: remove {segment} and run the ingest again ({error})") from error


def _replaced_path(segment: Path) -> Path:
    return segment / FOLDER / "replaced.parquet"
