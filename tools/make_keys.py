"""Make a finished store of synthetic keys, without an LM or text, for measurements at any size.

    python tools/make_keys.py STORE --rows N [--dimension 64 | --like MODEL] [--key-dtype int8] [--seed 0]

The keys are clustered like real ones: clusters of very unequal sizes, grouped around fewer topics, and dimensions of
very unequal spread. With ``--like`` the store has the width and identity of that LM, so that score runs on it too. The
same arguments make the same bytes; memory is that of one chunk for any N.
"""

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from knnstore.arrays import Float32, Int64
from knnstore.datastore.adopting import own_segment
from knnstore.datastore.documents import DOCUMENTS_SCHEMA
from knnstore.datastore.edits import editing
from knnstore.datastore.keycodec import KeyDtype, scales_of
from knnstore.datastore.layout import DOCUMENTS_FILE
from knnstore.datastore.manifest import KeyRecipe, ModelIdentity
from knnstore.datastore.segment import DOCUMENTS_TASK, SAMPLES_TASK, SegmentPlan
from knnstore.datastore.segmentwriter import SegmentWriter
from knnstore.datastore.store import Datastore, store_path
from knnstore.datastore.tables import write_table
from knnstore.errors import KnnstoreError, UsageError
from knnstore.files import make_folder
from knnstore.ingestion.plan import chunk_rows

CLUSTERS, TOPICS = 4096, 64
DOCUMENT_ROWS = 1000
CHECK_QUERIES = 1024
_QUERIES = 2**32  # draws with numbers from here on are queries, never keys
_BLOCK = 16384


class ClusteredKeys:
    """A seeded source of clustered vectors; draw ``number`` is always the same."""

    def __init__(self, dimension: int, seed: int = 0) -> None:
        generator = np.random.default_rng([seed, 0])
        topics = generator.standard_normal((TOPICS, dimension), np.float32)
        inner = generator.standard_normal((CLUSTERS, dimension), np.float32)
        self._centres = topics[generator.integers(TOPICS, size=CLUSTERS)] + 0.7 * inner
        shares = 1 / (np.arange(CLUSTERS) + 10.0)
        self._bounds = np.cumsum(shares / shares.sum())
        self._spread = (np.arange(1, dimension + 1) ** -0.35).astype(np.float32)
        self._seed = seed

    def draw(self, number: int, count: int) -> tuple[Float32, Int64]:
        """Return vectors, float32 (count, d), and the cluster of each, int64 (count,)."""
        generator = np.random.default_rng([self._seed, 1, number])
        clusters = np.minimum(np.searchsorted(self._bounds, generator.random(count)), CLUSTERS - 1).astype(np.int64)
        vectors = self._centres[clusters]
        for begin in range(0, count, _BLOCK):  # in place, so that a chunk is in memory only once
            block = vectors[begin : begin + _BLOCK]
            block += 0.6 * generator.standard_normal(block.shape, np.float32)
            block *= self._spread
        return vectors, clusters

    def queries(self, number: int, count: int) -> Float32:
        """Return vectors of the same distribution that aren't keys: float32 (count, d)."""
        return self.draw(_QUERIES + number, count)[0]


def make_store(
    store: Path, rows: int, *, dimension: int = 64, like: str | None = None, key_dtype: KeyDtype = "int8", seed: int = 0
) -> Datastore:
    """Make the store at ``store``, which must not exist or must be empty; see the module."""
    root = store_path(str(store))
    if root.exists() and any(root.iterdir()):
        raise UsageError(f"{root} isn't empty: choose another name, or remove it")
    identity, recipe = _strangers(dimension) if like is None else _identity(like)
    plan = SegmentPlan(
        model=identity,
        key=recipe,
        key_dtype=key_dtype,
        chunk_rows=chunk_rows(recipe.dimension, key_dtype),
        sources=f"{rows} synthetic keys, seed {seed}",
        text_field="text",
        errors="strict",
        holdout=0.0,
        compute="synthetic",
        versions={"numpy": np.__version__},
    )
    make_folder(root)
    with editing(root) as edit:
        edit.create(identity, recipe)
        writer = SegmentWriter.begin(own_segment(edit, None), plan)
        _write_segment(writer, ClusteredKeys(recipe.dimension, seed), rows)
        state = replace(edit.state, segments=(writer.segment.root.name,))
        edit.publish(state, "ingest", f"make {rows:,} synthetic keys")
    return Datastore(root)


def _strangers(dimension: int) -> tuple[ModelIdentity, KeyRecipe]:
    identity = ModelIdentity("synthetic", weights="", config="", tokenizer="", vocabulary=2**15)
    return identity, KeyRecipe("ffn-input", dimension, context=256, stride=128)


def _identity(model: str) -> tuple[ModelIdentity, KeyRecipe]:
    from knnstore.lm.forward import describe
    from knnstore.lm.spec import LmSpec

    facts = describe(LmSpec(model))
    context = facts.default_context
    return facts.identity, KeyRecipe(facts.layer, facts.dimension, context, max(1, context // 2))


def _write_segment(writer: SegmentWriter, source: ClusteredKeys, rows: int) -> None:
    segment, plan = writer.segment, writer.segment.plan
    with writer.task(SAMPLES_TASK) as samples:
        if plan.key_dtype == "int8":
            samples.write_whole(key_scales=scales_of(source.queries(1, _BLOCK)))
        samples.write_queries(np.arange(CHECK_QUERIES), source.queries(0, CHECK_QUERIES))
    writer.lay_out_keys(rows)
    with writer.task(DOCUMENTS_TASK) as documents:
        write_table(documents.file(DOCUMENTS_FILE), _documents(rows, plan.sources))
        with documents.appending(values=rows, heldout=CHECK_QUERIES) as (values, heldout):
            heldout.append(np.zeros(CHECK_QUERIES, plan.value_dtype))
            for chunk, begin in enumerate(range(0, rows, plan.chunk_rows)):
                vectors, clusters = source.draw(chunk, min(plan.chunk_rows, rows - begin))
                # a cluster stands for a context, which has a usual next token
                tokens = (clusters * 7 + np.arange(len(clusters)) % 3) % plan.model.vocabulary
                values.append(tokens.astype(plan.value_dtype))
                stored = np.empty(vectors.shape, segment.codec.stored)
                for start in range(0, len(stored), _BLOCK):
                    stored[start : start + _BLOCK] = segment.codec.encode(vectors[start : start + _BLOCK])
                writer.write_keys(chunk, stored)


def _documents(rows: int, sources: str) -> Any:
    """Return the table of documents; digests are of the seed and row, because there is no text."""
    first = np.arange(0, rows, DOCUMENT_ROWS)
    first = np.append(first, rows)  # a held-out document that the queries belong to
    nothing = np.zeros(len(first), np.int64)
    heldout = np.where(first == rows, CHECK_QUERIES, nothing)
    columns = {
        "path": pa.array([f"synthetic/{number:08d}" for number in range(len(first))]),
        "record": pa.nulls(len(first), pa.int64()),
        "id": pa.nulls(len(first), pa.string()),
        "bytes": nothing,
        "sha256": pa.array([hashlib.sha256(f"{sources}, {row}".encode()).digest() for row in first], pa.binary(32)),
        "first_row": first,
        "tokens": np.minimum(first + DOCUMENT_ROWS, rows) - first,
        "heldout_first": nothing,
        "heldout_tokens": heldout,
        "heldout_bytes": heldout,
    }
    return pa.table(columns).cast(DOCUMENTS_SCHEMA)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rows", type=lambda text: int(float(text)), required=True)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--like", metavar="MODEL", help="use the width and identity of this LM")
    parser.add_argument("--key-dtype", choices=["int8", "float16"], default="int8")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    try:
        store = make_store(**options)
    except KnnstoreError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{store.root}: {store.rows:,} keys of {store.segments[0].dimension}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
