"""Compare a corpus with a store by the digests of the texts, before anything is tokenised."""

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

_BATCH = 8192  # number of documents that are Python objects at a time


@dataclass(frozen=True, slots=True, eq=False)
class Differences:
    """Differences between a corpus and a store.

    ``corpus``: the documents of the corpus, a table of ``SURVEY_SCHEMA``; ``new``: bool (documents,), those to be
    stored. ``added`` counts new documents with a new name; ``changed`` those with another text than the stored document
    of the same name, which is in ``replaced``; ``unchanged`` those whose text is stored; ``copies`` those left out
    because an earlier new document has the same text; ``withheld`` those that were deliberately removed from the store
    and stay out. ``gone``: stored documents that should be in the corpus but aren't.
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
    """List the documents of one part of the corpus."""

    part: TokenPart
    options: ReadOptions


def survey(task: SurveyTask) -> tuple[int, Any]:
    """Return the number of the part and its table of documents, from ``survey_part``."""
    return task.part.index, survey_part(task.part, task.options)


def survey_corpus(sources: Sequence[Source], options: ReadOptions, job: Job) -> Any:
    """Return all documents of the corpus, in order: a table of ``SURVEY_SCHEMA``."""
    parts = plan_parts(sources)
    sizes = parts.sizes()
    tables: dict[int, Any] = {}
    with job.reporter.bar("survey", parts.bytes, "B") as advance:
        for index, table in job.runner.run(survey, (SurveyTask(part, options) for part in parts)):
            tables[index] = table
            advance(sizes[index])
    return pa.concat_tables([SURVEY_SCHEMA.empty_table(), *(tables[index] for index in sorted(tables))])


def compare(store: Datastore, corpus: Any, inside: Callable[[str], bool], takedowns: Digests) -> Differences:
    """Return what must change for the store to match the corpus. ``inside``: whether a path belongs to the corpus."""
    digests = digests_of(corpus)
    stored = [segment.documents.sha256 for segment in store.segments]
    live = [_live(store, number) for number in range(len(stored))]
    known = _in(digests, np.concatenate([own[numbers] for own, numbers in zip(stored, live, strict=True)]))
    withheld = ~known & _in(digests, takedowns)
    new = ~known & ~withheld
    copies = new & ~first_of_each(digests)
    new &= ~copies
    stale = [numbers[~_in(own[numbers], digests)] for own, numbers in zip(stored, live, strict=True)]
    tables = [segment.documents.table.take(numbers) for segment, numbers in zip(store.segments, stale, strict=True)]
    # a stored record may have moved to another number, so its number doesn't identify the document it replaces
    identified = new | copies | (known & _named_for_good(corpus))
    names = [chunk for table in tables for chunk in names_of(table).chunks]
    renewed = identified & _named(corpus, pa.chunked_array(names, pa.large_string()))
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
    """Return the parts of the corpus that hold new documents, with the new records."""
    numbers, some = array("q"), dict[str, tuple[int, ...]]()
    runs = _runs(differences.corpus.column("path"))
    path, begin, end = next(runs)
    for number, source in enumerate(sources):  # a source with documents has the next run of them
        if source.path == path:
            new = np.flatnonzero(differences.new[begin:end])
            if len(new):
                numbers.append(number)
            if 0 < len(new) < end - begin:
                some[path] = tuple(differences.corpus.column("record").slice(begin, end - begin).take(new).to_pylist())
            path, begin, end = next(runs, ("", 0, 0))
    return plan_parts(Chosen(sources, numbers), records=lambda source: some.get(source.path))


def digest_of(differences: Differences) -> str:
    """Return the digest of what an append depends on: the texts it adds, their sources, and what they replace."""
    digest = hashlib.sha256()
    for batch in differences.corpus.filter(pa.array(differences.new)).to_batches(max_chunksize=_BATCH):
        for row in batch.to_pylist():
            digest.update(encode_json(row | {"sha256": row["sha256"].hex()}))
    replaced = {name: numbers.tolist() for name, numbers in differences.replaced.items()}
    return fingerprint({"added": digest.hexdigest(), "replaced": replaced})


def replaced_heldout(store: Datastore, differences: Differences) -> dict[str, int | None]:
    """Return the held-out tokens of replaced documents by name; None for a document that was held out whole."""
    heldout: dict[str, int | None] = {}
    for segment in store.segments:
        numbers = differences.replaced.get(segment.root.name, np.empty(0, np.int64))
        table = segment.documents
        names = names_of(table.table.take(numbers)).to_pylist()
        for name, number in zip(names, numbers, strict=True):
            if table.heldout_tokens[number]:
                heldout[name] = int(table.heldout_tokens[number]) if table.tokens[number] else None
    return heldout


def names_of(table: Any) -> Any:
    """Return strings that identify the documents of a table: path and id of the record, or its number without an id."""
    path, record, label = (table.column(name).cast(pa.large_string()) for name in ("path", "record", "id"))
    marked = pc.coalesce(_joined("=", label), _joined("#", record), pa.scalar("", pa.large_string()))
    return pc.binary_join_element_wise(path, marked, pa.scalar("\0", pa.large_string()))  # no path has a NUL


def _joined(mark: str, column: Any) -> Any:
    mark, nothing = pa.scalar(mark, pa.large_string()), pa.scalar("", pa.large_string())
    return pc.binary_join_element_wise(mark, column, nothing)


def is_among(names: Any, wanted: Any) -> Bool:
    """Return whether each name is wanted: bool (names,)."""
    values = wanted if isinstance(wanted, pa.ChunkedArray) else pa.array(wanted, pa.large_string())
    among: Bool = pc.is_in(names, value_set=values).to_numpy()
    return among


def _named_for_good(corpus: Any) -> Bool:
    """Return whether each document is identified by its path or an id, not a record's number: bool (documents,)."""
    named: Bool = pc.or_(pc.is_null(corpus.column("record")), pc.is_valid(corpus.column("id"))).to_numpy()
    return named


def _named(corpus: Any, names: Any) -> Bool:
    """Return whether each document of the corpus has one of the names: bool (documents,). Works batch by batch."""
    batches = corpus.to_batches(max_chunksize=_BATCH) if len(names) else ()
    named = [is_among(names_of(pa.Table.from_batches([batch])), names) for batch in batches]
    return np.concatenate(named) if named else np.zeros(len(corpus), np.bool_)


def _in(digests: Digests, others: Digests) -> Bool:
    """Return ``np.isin(digests, others)``, by a hash table instead of a sort, in a fraction of the memory."""
    among: Bool = pc.is_in(_arrow(digests), value_set=_arrow(others)).to_numpy(zero_copy_only=False)
    return among


def _arrow(digests: Digests) -> Any:
    buffer = pa.py_buffer(np.ascontiguousarray(digests))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(digests), [None, buffer])


def _runs(paths: Any) -> Iterator[tuple[str, int, int]]:
    """Yield each path of a column with begin and end of its run."""
    begin = 0
    for path, run in groupby(path.as_py() for path in paths):
        end = begin + sum(1 for _ in run)
        yield path, begin, end
        begin = end


def _live(store: Datastore, segment: int) -> Int64:
    documents, name = store.segments[segment].documents, store.segments[segment].root.name
    removed = store.removed.get(name, np.empty(0, np.int64))
    return np.setdiff1d(np.arange(len(documents)), removed)


def _some(documents: dict[str, Int64]) -> Removed:
    return {name: numbers for name, numbers in documents.items() if len(numbers)}
