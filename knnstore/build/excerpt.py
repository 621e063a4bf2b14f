"""Some chunks of a store's keys as a store of their own, to try a build on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from knnstore.atomic import write_json
from knnstore.datastore.arrays import create_array, write_chunk
from knnstore.datastore.documents import DOCUMENTS_SCHEMA, HELDOUT_TOKENS
from knnstore.datastore.history import publish
from knnstore.datastore.manifest import FORMAT_VERSION, Manifest, save_manifest
from knnstore.datastore.queries import write_queries
from knnstore.datastore.segment import (
    DOCUMENTS_FILE,
    DOCUMENTS_TASK,
    LAYOUT_TASK,
    PLAN_FILE,
    SAMPLES_TASK,
    Segment,
    keys_task,
)
from knnstore.datastore.store import Datastore, segment_root
from knnstore.datastore.tables import write_table
from knnstore.records import to_json


def make_excerpt(store: Datastore, root: Path, chunks: int) -> Datastore:
    """A store at ``root``, an empty folder, of so many chunks spread over another's largest segment, or all it has."""
    source = max(store.segments, key=lambda segment: segment.rows)
    # the last chunk is short unless the others are too few
    whole = max(1, source.rows // source.plan.chunk_rows)
    taken = np.unique(np.linspace(0, whole - 1, min(chunks, whole)).astype(np.int64)).tolist()
    path = segment_root(root, "0000")
    path.mkdir(parents=True)
    write_json(path / PLAN_FILE, to_json(replace(source.plan, sources="an excerpt")))
    segment = Segment(path)
    _write(segment, source, taken)
    model, recipe = source.plan.model, source.plan.key
    empty = Manifest("knnstore", FORMAT_VERSION, model, recipe, (), None)
    save_manifest(root, empty)
    publish(root, replace(empty, segments=(path.name,)), "subset", "an excerpt")
    return Datastore(root)


def _write(segment: Segment, source: Segment, chunks: list[int]) -> None:
    ranges = [source.chunk_range(chunk) for chunk in chunks]
    rows, width = sum(end - begin for begin, end in ranges), source.dimension
    values = np.concatenate([source.values(begin, end) for begin, end in ranges])
    log, plan = segment.commits, segment.plan
    log.prepare()
    row: dict[str, object] = dict.fromkeys(DOCUMENTS_SCHEMA.names, 0)
    row |= {"path": "excerpt", "record": None, "id": None, "sha256": bytes(32), "tokens": rows}
    documents = segment.root / DOCUMENTS_FILE
    write_table(documents, pa.Table.from_pylist([row], DOCUMENTS_SCHEMA))
    files = create_array(segment.array_path("values"), (rows,), rows, plan.value_dtype, "values")
    files.append(write_chunk(segment.array_path("values"), 0, values))
    files += create_array(segment.array_path("heldout"), (0,), HELDOUT_TOKENS, plan.value_dtype, "values")
    log.commit(DOCUMENTS_TASK, [documents, *files])
    keys = segment.array_path("keys")
    log.commit(LAYOUT_TASK, create_array(keys, (rows, width), plan.chunk_rows, segment.key_dtype, "keys"))
    files = write_queries(segment, np.empty(0, np.int64), np.empty((0, width), np.float32))
    scales = source.codec.scales
    if scales is not None:
        path = segment.array_path("key_scales")
        files += [*create_array(path, scales.shape, width, scales.dtype, "none"), write_chunk(path, 0, scales)]
    log.commit(SAMPLES_TASK, files, queries=0)
    for number, (begin, end) in enumerate(ranges):
        log.commit(keys_task(number), [write_chunk(keys, number, source.keys(begin, end))], rows=end - begin)
