"""Copy some chunks of a store's keys to a store of their own, for a trial build."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from knnstore.datastore.adopting import own_segment
from knnstore.datastore.documents import plain_documents
from knnstore.datastore.edits import editing
from knnstore.datastore.layout import DOCUMENTS_FILE
from knnstore.datastore.segment import DOCUMENTS_TASK, SAMPLES_TASK, Segment
from knnstore.datastore.segmentwriter import SegmentWriter
from knnstore.datastore.store import Datastore
from knnstore.datastore.tables import write_table
from knnstore.files import make_folder


def make_excerpt(store: Datastore, root: Path, chunks: int) -> Datastore:
    """Create a store at ``root``, an empty folder, from ``chunks`` chunks (or all) spread over the largest segment."""
    source = max(store.segments, key=lambda segment: segment.rows)
    # the last chunk, which may be short, is used only if it is the only one
    whole = max(1, source.rows // source.plan.chunk_rows)
    taken = np.unique(np.linspace(0, whole - 1, min(chunks, whole)).astype(np.int64)).tolist()
    make_folder(root)
    with editing(root) as edit:
        edit.create(source.plan.model, source.plan.key)
        writer = SegmentWriter.begin(own_segment(edit, None), replace(source.plan, sources="an excerpt"))
        _write(writer, source, taken)
        edit.publish(replace(edit.state, segments=(writer.segment.root.name,)), "subset", "an excerpt")
    return Datastore(root)


def _write(writer: SegmentWriter, source: Segment, chunks: list[int]) -> None:
    values = np.concatenate([source.values(*source.chunk_range(chunk)) for chunk in chunks])
    with writer.task(DOCUMENTS_TASK) as task:
        write_table(task.file(DOCUMENTS_FILE), plain_documents([("excerpt", len(values), bytes(32))]))
        with task.appending(values=len(values), heldout=0) as (stored, _):
            stored.append(values)
    writer.lay_out_keys()
    with writer.task(SAMPLES_TASK) as task:
        if (scales := source.codec.scales) is not None:
            task.write_whole(key_scales=scales)
        task.write_queries(np.empty(0, np.int64), np.empty((0, source.dimension), np.float32))
    for number, chunk in enumerate(chunks):
        writer.write_keys(number, source.keys(*source.chunk_range(chunk)))
