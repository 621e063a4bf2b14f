"""What a corpus has that a store doesn't, and the other way round: by the digests of the texts, before any tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from glob import has_magic
from typing import Any

import numpy as np
import pyarrow as pa

from knnstore.corpus.options import ReadOptions
from knnstore.corpus.sources import Source
from knnstore.corpus.tokens import SURVEY_SCHEMA, TokenPart, plan_parts
from knnstore.datastore.removed import Removed
from knnstore.datastore.rowranges import Bool, Int64
from knnstore.datastore.store import Datastore
from knnstore.datastore.takedowns import Digests
from knnstore.ingest.tasks import SurveyTask, survey
from knnstore.progress import Reporter
from knnstore.records import fingerprint
from knnstore.scheduling import Runner

Name = tuple[str, int | str | None]


@dataclass(frozen=True, slots=True, eq=False)
class Differences:
    """``corpus``: the documents that are there, of ``SURVEY_SCHEMA``; ``new``: bool, those the store doesn't have.

    Of the new ones, ``changed`` replace documents of the store, ``replaced``, that have the same name. ``withheld``
    counts those that were removed from the store on purpose and stay out. ``gone``: documents of the store that the
    corpus should have and doesn't.
    """

    corpus: Any
    new: Bool
    changed: int
    replaced: Removed
    withheld: int
    gone: Removed

    @property
    def added(self) -> int:
        """New documents that replace none."""
        return int(self.new.sum()) - self.changed

    @property
    def unchanged(self) -> int:
        """Documents that the store has."""
        return len(self.new) - int(self.new.sum()) - self.withheld


def survey_corpus(sources: Sequence[Source], options: ReadOptions, runner: Runner, reporter: Reporter) -> Any:
    """All documents of the corpus, in order: a table of ``SURVEY_SCHEMA``."""
    parts = plan_parts(sources)
    sizes = {part.index: sum(source.bytes for source in part.sources) for part in parts}
    tables: dict[int, Any] = {}
    with reporter.bar("survey", sum(sizes.values()), "B") as advance:
        for index, table in runner.run(survey, [SurveyTask(part, options) for part in parts]):
            tables[index] = table
            advance(sizes[index])
    return pa.concat_tables([SURVEY_SCHEMA.empty_table(), *(tables[index] for index in sorted(tables))])


def compare(store: Datastore, corpus: Any, arguments: Sequence[str], takedowns: Digests) -> Differences:
    """What is to be done for the store to have the corpus. ``arguments``: those that named the corpus."""
    digests = np.frombuffer(b"".join(corpus.column("sha256").to_pylist()), "S32")
    stored = [segment.documents.sha256 for segment in store.segments]
    live = [_live(store, number) for number in range(len(stored))]
    known = np.isin(digests, np.concatenate([ours[numbers] for ours, numbers in zip(stored, live, strict=True)]))
    withheld = ~known & np.isin(digests, takedowns)
    new = ~known & ~withheld
    wanted = _names(corpus.filter(pa.array(new)))
    replaced: dict[str, Int64] = {}
    gone: dict[str, Int64] = {}
    changed: set[Name] = set()
    inside = _scope(arguments)
    for segment, ours, numbers in zip(store.segments, stored, live, strict=True):
        stale = numbers[~np.isin(ours[numbers], digests)]
        names = _names(segment.documents.table.take(stale))
        same = np.array([name in wanted for name in names], np.bool_)
        scoped = np.array([inside(name[0]) for name in names], np.bool_)
        replaced[segment.root.name], gone[segment.root.name] = stale[same], stale[scoped & ~same]
        changed.update(name for name in names if name in wanted)
    return Differences(corpus, new, len(changed), _some(replaced), int(withheld.sum()), _some(gone))


def parts_to_add(sources: Sequence[Source], differences: Differences) -> list[TokenPart]:
    """The parts of the corpus that hold new documents, with the records that are new."""
    wanted: dict[str, list[int | None]] = {}
    there: dict[str, int] = {}
    paths, records = differences.corpus.column("path").to_pylist(), differences.corpus.column("record").to_pylist()
    for path, record, new in zip(paths, records, differences.new.tolist(), strict=True):
        there[path] = there.get(path, 0) + 1
        if new:
            wanted.setdefault(path, []).append(record)

    def some(source: Source) -> tuple[int, ...] | None:
        numbers = wanted[source.path]
        return None if len(numbers) == there[source.path] else tuple(n for n in numbers if n is not None)

    return [
        TokenPart(part.index, part.sources, tuple(map(some, part.sources)))
        for part in plan_parts([source for source in sources if source.path in wanted])
    ]


def digest_of(differences: Differences) -> str:
    """What an append depends on: which texts it adds, from where, and what they replace."""
    new = differences.corpus.filter(pa.array(differences.new)).to_pylist()
    replaced = {name: numbers.tolist() for name, numbers in differences.replaced.items()}
    return fingerprint({"added": [row | {"sha256": row["sha256"].hex()} for row in new], "replaced": replaced})


def replaced_heldout(store: Datastore, differences: Differences) -> dict[Name, int | None]:
    """Held-out tokens of the documents that are replaced, by name: None where they were held out whole."""
    found: dict[Name, int | None] = {}
    for segment in store.segments:
        numbers = differences.replaced.get(segment.root.name, np.empty(0, np.int64))
        table = segment.documents
        for name, number in zip(_names(table.table.take(numbers)), numbers, strict=True):
            if table.heldout_tokens[number]:
                found[name] = int(table.heldout_tokens[number]) if table.tokens[number] else None
    return found


def names_of(table: Any) -> list[Name]:
    """What tells the documents of a table apart: the path with the id, or else the number, of the record."""
    return _names(table)


def _names(table: Any) -> list[Name]:
    columns = (table.column(name).to_pylist() for name in ("path", "record", "id"))
    return [(path, record if label is None else label) for path, record, label in zip(*columns, strict=True)]


def _live(store: Datastore, segment: int) -> Int64:
    one = store.segments[segment]
    removed = store.removed.get(one.root.name, np.empty(0, np.int64))
    return np.setdiff1d(np.arange(len(one.documents)), removed)


def _scope(arguments: Sequence[str]) -> Any:
    """Whether a path lies where the corpus' arguments lead: only there can a document be gone."""
    patterns = [
        translate(argument) if has_magic(argument) else f"(?:{re.escape(argument.rstrip('/'))})(?:/.*)?\\Z"
        for argument in arguments
    ]
    tests = [re.compile(pattern, re.DOTALL) for pattern in patterns]
    return lambda path: any(test.match(path) for test in tests)


def _some(documents: dict[str, Int64]) -> Removed:
    return {name: numbers for name, numbers in documents.items() if len(numbers)}
