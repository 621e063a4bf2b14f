"""What a corpus has that a store doesn't, and the other way round: by the digests of the texts, before any tokens."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from knnstore.arrays import Bool, Int64
from knnstore.corpus.listing import Source
from knnstore.corpus.options import ReadOptions
from knnstore.corpus.parts import Chosen, Parts, TokenPart, plan_parts
from knnstore.corpus.tokens import SURVEY_SCHEMA, survey_part
from knnstore.datastore.documents import digests_of
from knnstore.datastore.removed import Removed
from knnstore.datastore.store import Datastore
from knnstore.datastore.takedowns import Digests
from knnstore.files import encode_json
from knnstore.ingestion.copies import first_of_each
from knnstore.records import fingerprint
from knnstore.scheduling import Job

_BATCH = 8192  # documents that are Python's objects at a time


@dataclass(frozen=True, slots=True, eq=False)
class Differences:
    """``corpus``: the documents that are there, of ``SURVEY_SCHEMA``; ``new``: bool, those to be stored.

    ``added`` counts new ones with a name that the store doesn't know; ``changed`` those with another text than the
    stored document of their name, which is in ``replaced``; ``unchanged`` those whose text the store has; ``copies``
    those left out because a new one before them has the same text; ``withheld`` those that were removed from the store
    on purpose and stay out. ``gone``: documents of the store that the corpus should have and doesn't.
    """

    corpus: Any
    new: Bool
    added: int
    changed: int
    unchanged: int
    copies: int
    replaced: Removed
    withheld: int
    gone: Removed


@dataclass(frozen=True, slots=True)
class SurveyTask:
    """Say which documents are in one part of the corpus."""

    part: TokenPart
    options: ReadOptions


def survey(task: SurveyTask) -> tuple[int, Any]:
    """The part's number and its documents, as ``survey_part`` tells them."""
    return task.part.index, survey_part(task.part, task.options)


def survey_corpus(sources: Sequence[Source], options: ReadOptions, job: Job) -> Any:
    """All documents of the corpus, in order: a table of ``SURVEY_SCHEMA``."""
    parts = plan_parts(sources)
    sizes = parts.sizes()
    tables: dict[int, Any] = {}
    with job.reporter.bar("survey", parts.bytes, "B") as advance:
        for index, table in job.runner.run(survey, (SurveyTask(part, options) for part in parts)):
            tables[index] = table
            advance(sizes[index])
    return pa.concat_tables([SURVEY_SCHEMA.empty_table(), *(tables[index] for index in sorted(tables))])


def compare(store: Datastore, corpus: Any, inside: Callable[[str], bool], takedowns: Digests) -> Differences:
    """What is to be done for the store to have the corpus. ``inside``: whether the corpus should have a path."""
    digests = digests_of(corpus)
    stored = [segment.documents.sha256 for segment in store.segments]
    live = [_live(store, number) for number in range(len(stored))]
    known = _in(digests, np.concatenate([ours[numbers] for ours, numbers in zip(stored, live, strict=True)]))
    withheld = ~known & _in(digests, takedowns)
    new = ~known & ~withheld
    copies = new & ~first_of_each(digests)
    new &= ~copies
    stale = [numbers[~_in(ours[numbers], digests)] for ours, numbers in zip(stored, live, strict=True)]
    tables = [segment.documents.table.take(numbers) for segment, numbers in zip(store.segments, stale, strict=True)]
    # the number of a record that is stored already may have moved, and says nothing of the one that had it
    told = new | copies | (known & _named_for_good(corpus))
    names = [chunk for table in tables for chunk in names_of(table).chunks]
    renewed = told & _named(corpus, pa.chunked_array(names, pa.large_string()))
    wanted = names_of(corpus.filter(pa.array(renewed)))
    replaced: dict[str, Int64] = {}
    gone: dict[str, Int64] = {}
    for segment, numbers, table in zip(store.segments, stale, tables, strict=True):
        same = is_among(names_of(table), wanted)
        scoped = np.array([inside(path.as_py()) for path in table.column("path")], np.bool_)
        replaced[segment.root.name], gone[segment.root.name] = numbers[same], numbers[scoped & ~same]
    return Differences(
        corpus=corpus,
        new=new,
        added=int((new & ~renewed).sum()),
        changed=int((renewed & ~copies).sum()),
        unchanged=int((known & ~renewed).sum()),
        copies=int(copies.sum()),
        replaced=_some(replaced),
        withheld=int(withheld.sum()),
        gone=_some(gone),
    )


def parts_to_add(sources: Sequence[Source], differences: Differences) -> Parts:
    """The parts of the corpus that hold new documents, with the records that are new."""
    numbers, some = array("q"), dict[str, tuple[int, ...]]()
    runs = _runs(differences.corpus.column("path"))
    path, begin, end = next(runs)
    for number, source in enumerate(sources):  # each, if it has documents, has the next run of them
        if source.path == path:
            new = np.flatnonzero(differences.new[begin:end])
            if len(new):
                numbers.append(number)
            if 0 < len(new) < end - begin:
                some[path] = tuple(differences.corpus.column("record").slice(begin, end - begin).take(new).to_pylist())
            path, begin, end = next(runs, ("", 0, 0))
    return plan_parts(Chosen(sources, numbers), records=lambda source: some.get(source.path))


def digest_of(differences: Differences) -> str:
    """What an append depends on: which texts it adds, from where, and what they replace."""
    digest = hashlib.sha256()
    for batch in differences.corpus.filter(pa.array(differences.new)).to_batches(max_chunksize=_BATCH):
        for row in batch.to_pylist():
            digest.update(encode_json(row | {"sha256": row["sha256"].hex()}))
    replaced = {name: numbers.tolist() for name, numbers in differences.replaced.items()}
    return fingerprint({"added": digest.hexdigest(), "replaced": replaced})


def replaced_heldout(store: Datastore, differences: Differences) -> dict[str, int | None]:
    """Held-out tokens of the documents that are replaced, by name: None where they were held out whole."""
    found: dict[str, int | None] = {}
    for segment in store.segments:
        numbers = differences.replaced.get(segment.root.name, np.empty(0, np.int64))
        table = segment.documents
        names = names_of(table.table.take(numbers)).to_pylist()
        for name, number in zip(names, numbers, strict=True):
            if table.heldout_tokens[number]:
                found[name] = int(table.heldout_tokens[number]) if table.tokens[number] else None
    return found


def names_of(table: Any) -> Any:
    """What tells the documents of a table apart: strings of the path with the id, or else the number, of the record."""
    path, record, label = (table.column(name).cast(pa.large_string()) for name in ("path", "record", "id"))
    marked = pc.coalesce(_joined("=", label), _joined("#", record), pa.scalar("", pa.large_string()))
    return pc.binary_join_element_wise(path, marked, pa.scalar("\0", pa.large_string()))  # no path has a NUL


def _joined(mark: str, column: Any) -> Any:
    mark, nothing = pa.scalar(mark, pa.large_string()), pa.scalar("", pa.large_string())
    return pc.binary_join_element_wise(mark, column, nothing)


def is_among(names: Any, wanted: Any) -> Bool:
    """Whether each of the names is wanted: bool (names,)."""
    values = wanted if isinstance(wanted, pa.ChunkedArray) else pa.array(wanted, pa.large_string())
    found: Bool = pc.is_in(names, value_set=values).to_numpy()
    return found


def _named_for_good(corpus: Any) -> Bool:
    """Whether each document is named by its path or an id, not by the number of a record: bool (documents,)."""
    named: Bool = pc.or_(pc.is_null(corpus.column("record")), pc.is_valid(corpus.column("id"))).to_numpy()
    return named


def _named(corpus: Any, names: Any) -> Bool:
    """Whether each document of the corpus has one of the names, a batch at a time: bool (documents,)."""
    batches = corpus.to_batches(max_chunksize=_BATCH) if len(names) else ()
    named = [is_among(names_of(pa.Table.from_batches([batch])), names) for batch in batches]
    return np.concatenate(named) if named else np.zeros(len(corpus), np.bool_)


def _in(digests: Digests, others: Digests) -> Bool:
    """``np.isin``, by a table of hashes in place of a sort: in a fraction of the memory."""
    found: Bool = pc.is_in(_arrow(digests), value_set=_arrow(others)).to_numpy(zero_copy_only=False)
    return found


def _arrow(digests: Digests) -> Any:
    buffer = pa.py_buffer(np.ascontiguousarray(digests))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(digests), [None, buffer])


def _runs(paths: Any) -> Iterator[tuple[str, int, int]]:
    """Each path that stands in a column, with where its run begins and ends."""
    begin = 0
    for path, run in groupby(path.as_py() for path in paths):
        end = begin + sum(1 for _ in run)
        yield path, begin, end
        begin = end


def _live(store: Datastore, segment: int) -> Int64:
    one = store.segments[segment]
    removed = store.removed.get(one.root.name, np.empty(0, np.int64))
    return np.setdiff1d(np.arange(len(one.documents)), removed)


def _some(documents: dict[str, Int64]) -> Removed:
    return {name: numbers for name, numbers in documents.items() if len(numbers)}
