"""A finished store of synthetic keys, without an LM: the arrays are written as an ingest would."""

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from knnstore.datastore.adopting import own_segment
from knnstore.datastore.documents import DOCUMENTS_SCHEMA
from knnstore.datastore.edits import editing
from knnstore.datastore.keycodec import KeyCodec, scales_of
from knnstore.datastore.layout import DOCUMENTS_FILE
from knnstore.datastore.manifest import KeyRecipe, ModelIdentity
from knnstore.datastore.segment import DOCUMENTS_TASK, SAMPLES_TASK, SegmentPlan
from knnstore.datastore.segmentwriter import SegmentWriter
from knnstore.datastore.store import Datastore
from knnstore.datastore.tables import write_table

faiss.omp_set_num_threads(1)  # threads that wait for each other over so few keys take seconds on a busy machine


def clustered_keys(rows, dimension, seed=0, clusters=20):
    """Keys in clusters, float32 (rows, dimension)."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(clusters, dimension)) * 2
    keys = centres[generator.integers(clusters, size=rows)] + generator.normal(size=(rows, dimension))
    return keys.astype(np.float32)


def make_store(
    root,
    segments,
    *,
    key_dtype="float16",
    chunk_rows=512,
    queries=None,
    vocabulary=1000,
    document_rows=None,
    digests=(),
):
    """A finished store of one or more segments, each float32 (rows, d), in documents of so many rows (None: one).

    ``digests``: of the documents' texts.
    """
    model = ModelIdentity("synthetic", "0" * 64, "1" * 64, "2" * 64, vocabulary)
    recipe = KeyRecipe("ffn-input", segments[0].shape[1], 256, 128)
    Path(root).mkdir(parents=True, exist_ok=True)
    with editing(Path(root)) as edit:
        edit.create(model, recipe)
        for number, keys in enumerate(segments):
            held_out = queries if number == 0 and queries is not None else np.empty((0, keys.shape[1]), np.float32)
            digits = f"{number:064d}"
            plan = SegmentPlan(model, recipe, key_dtype, chunk_rows, digits, "text", "strict", 0.0, "float32", {})
            writer = SegmentWriter.begin(own_segment(edit, None), plan)
            _write_segment(writer, keys, held_out, document_rows=document_rows or len(keys), digests=digests)
        names = tuple(f"{number:04d}" for number in range(len(segments)))
        edit.publish(replace(edit.state, segments=names), "ingest", "synthetic keys")
    return Datastore(Path(root))


def publish(root, state, kind, what):
    """Make ``state`` the store's next one."""
    with editing(root) as edit:
        edit.publish(state, kind, what)


def stored_keys(store):
    """All keys as a search sees them, float32 (rows, d), and their values."""
    keys = [segment.codec.decode(segment.keys(0, segment.rows)) for segment in store.segments]
    return np.concatenate(keys), np.concatenate([segment.values(0, segment.rows) for segment in store.segments])


def brute_force(store, queries):
    """Squared distances in float64, (queries, rows)."""
    keys, _ = stored_keys(store)
    return ((queries[:, None].astype(np.float64) - keys[None]) ** 2).sum(-1)


def _write_segment(writer, keys, queries, *, document_rows, digests):
    plan = writer.segment.plan
    codec = KeyCodec(plan.key_dtype, scales_of(keys) if plan.key_dtype == "int8" else None)
    values = np.random.default_rng(len(keys)).integers(plan.model.vocabulary, size=len(keys)).astype(plan.value_dtype)
    with writer.task(SAMPLES_TASK) as task:
        if codec.scales is not None:
            task.write_whole(key_scales=codec.scales)
        task.write_queries(np.arange(len(queries)), queries)
    documents = [
        {field.name: 0 for field in DOCUMENTS_SCHEMA}
        | {"path": f"{first}.txt", "record": None, "id": None, "sha256": bytes(32)}
        | {"first_row": first, "tokens": min(document_rows, len(keys) - first)}
        for first in range(0, len(keys), document_rows)
    ]
    for document, digest in zip(documents, digests, strict=False):
        document["sha256"] = digest
    if len(queries):
        named = {"path": "held out.txt", "sha256": queries.tobytes()[:32]}
        held_out = {"heldout_tokens": len(queries), "heldout_bytes": 4 * len(queries)}
        documents.append(documents[-1] | named | held_out | {"tokens": 0, "first_row": len(keys)})
    with writer.task(DOCUMENTS_TASK) as task:
        write_table(task.file(DOCUMENTS_FILE), pa.Table.from_pylist(documents, schema=DOCUMENTS_SCHEMA))
        with task.appending(values=len(keys), heldout=len(queries)) as (stored, heldout):
            stored.append(values)
            heldout.append(np.resize(values, len(queries)))
    writer.lay_out_keys()
    for chunk in range(writer.segment.chunks):
        begin, end = writer.segment.chunk_range(chunk)
        writer.write_keys(chunk, codec.encode(keys[begin:end]))
