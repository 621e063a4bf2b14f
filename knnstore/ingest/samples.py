"""What is sampled before the keys are made: the int8 scales, and keys of held-out tokens to check an index with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from knnstore.datastore.arrays import create_array, write_chunk
from knnstore.datastore.keycodec import INT8_LIMIT, scales_of
from knnstore.datastore.queries import MOST_QUERIES, write_queries
from knnstore.datastore.segment import SAMPLES_TASK, Segment
from knnstore.errors import NumericsError
from knnstore.ingest.passes import (
    Float32,
    Int64,
    TokenReader,
    heldout_tokens,
    key_model_of,
    place_of,
    stored_tokens,
    window_keys_of,
)
from knnstore.lm.spec import LmSpec
from knnstore.windows import Windows, cut_windows

if TYPE_CHECKING:
    from knnstore.lm.forward import KeyModel

# Windows whose keys set the int8 scales, and those whose keys are kept for the index's self-check.
_SCALE_WINDOWS = 128
_QUERY_WINDOWS = 64
_MOST_CLIPPED = 1e-4


@dataclass(frozen=True, slots=True)
class SamplesTask:
    """Compute the int8 scales and the queries; ``scales_of``: a segment whose scales will do if they suit the keys."""

    segment: Path
    spec: LmSpec
    scales_of: Path | None = None


def write_samples(task: SamplesTask) -> int:
    """Write the int8 scales, and keys of held-out tokens to check an index with; return how many of those."""
    segment = Segment(task.segment)
    model = key_model_of(task.spec, segment)
    files: list[Path] = []
    plan, table = segment.plan, segment.documents
    cut = partial(cut_windows, context=plan.key.context, stride=plan.key.stride)
    taken: str | None = None
    if plan.key_dtype == "int8":
        rows, sample = _sampled_keys(segment, model, cut(table.first_row, table.tokens), stored_tokens, _SCALE_WINDOWS)
        _require_finite(segment, rows, sample)
        path = segment.array_path("key_scales")
        files += create_array(path, (segment.dimension,), segment.dimension, np.dtype(np.float32), "none")
        scales, taken = _scales(sample, task.scales_of)
        files.append(write_chunk(path, 0, scales))
    windows = cut(table.heldout_first, table.heldout_tokens)
    tokens, queries = _sampled_keys(segment, model, windows, heldout_tokens, _QUERY_WINDOWS)
    _require_finite(segment, tokens, queries, heldout=True)
    files += write_queries(segment, tokens, queries)
    segment.commits.commit(SAMPLES_TASK, files, queries=min(len(queries), MOST_QUERIES), scales_of=taken)
    return len(queries)


def _sampled_keys(
    segment: Segment, model: "KeyModel", windows: Windows, reader: Callable[[Segment, Windows], TokenReader], count: int
) -> tuple[Int64, Float32]:
    """Rows, int64 (n,), and keys, float32 (n, d), of ``count`` windows spread evenly over documents."""
    if not len(windows):
        return np.empty(0, np.int64), np.empty((0, segment.dimension), np.float32)
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(count, len(windows)), dtype=np.int64))
    parts = []
    for index in chosen:  # one window at a time: what is read for them lies far apart
        window = windows.select(slice(int(index), int(index) + 1))
        parts += list(window_keys_of(model, window, reader(segment, window)))
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([keys for _, keys in parts])


def _scales(sample: Float32, given: Path | None) -> tuple[Float32, str | None]:
    """The scales of the given segment, and its name, if they clip next to nothing of the sample; else the sample's own.

    Segments of equal scales are compacted byte by byte.
    """
    theirs = Segment(given).codec.scales if given else None
    if given is None or theirs is None:
        return scales_of(sample), None
    clipped = (np.abs(sample) > (INT8_LIMIT + 0.5) * theirs).sum()
    return (scales_of(sample), None) if clipped > _MOST_CLIPPED * sample.size else (theirs, given.name)


def _require_finite(segment: Segment, rows: Int64, keys: Float32, *, heldout: bool = False) -> None:
    """Raise NumericsError if a key of the sample isn't finite: the scales, and with them all keys, would follow it."""
    finite = np.isfinite(keys).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        where = place_of(segment, int(rows[first]), heldout=heldout)
        worst = keys[first][~np.isfinite(keys[first])][0]
        raise NumericsError(f"{where}: an activation is {worst}; try --dtype float32")
