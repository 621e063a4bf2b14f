"""Bytes per key against recall@k and perplexity: int8 keys, fewer dimensions, and PQ codes of several lengths.

Uses keys of a real store (``--store``, else made from ``--corpus``) and held-out text (``--text``); and, instead of
wider models, the same keys through a random layer of 1024 rectified units. Every form is searched exhaustively, so that
lists have no effect: distances are those to the decoded keys. λ and T are tuned on one half of the tokens, and the
perplexity is that of the other half. ``--quick`` leaves out OPQ, which takes long to train.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.asking import scored_tokens, text_store
from benchmarks.measuring import Result, Settings, Table
from knnstore.arrays import Float32, Int64
from knnstore.datastore.keycodec import KeyCodec, scales_of
from knnstore.datastore.store import Datastore
from knnstore.indexes.check import recall
from knnstore.indexes.compute.stored import decode
from knnstore.indexes.ivfpq.kmeans import two_level_kmeans
from knnstore.indexes.ivfpq.quantiser import Quantiser, train_codebooks
from knnstore.indexes.ivfpq.rotation import optimised_axes, principal_axes
from knnstore.indexes.ivfpq.train import PQ_ROWS
from knnstore.mixing.interpolation import best_lambda, mix
from knnstore.mixing.knn import target_probabilities
from knnstore.neighbours import Neighbours
from knnstore.planning import LOOKUP_RERANK, choose_cells

K, WIDE, NLIST = 1024, 1024, 1024
PIECE = 64  # consecutive tokens per place, from many places in the text
_QUERIES_AT_ONCE = 128
_TEMPERATURES = 2.0 ** np.arange(-4, 3, 0.5)  # in units of the mean of d_k − d_1
Form = tuple[str, int, Float32, Float32, Float32 | None]
"""Name, bytes per key, keys (n, d) and queries (q, d) between which distances are computed, and keys to re-rank the
best candidates with, or None."""


def run(settings: Settings, work: Path) -> Result:
    rows = settings.size(settings.rows, quick=8_000, full=131_072)
    store = text_store(settings, work, rows)
    count = settings.size(settings.queries, quick=512, full=2048)
    keys, values = some_keys(store, rows)
    scored = scored_tokens(store, settings, count, PIECE)
    tables: list[Table] = []
    ratios: dict[str, float] = {}
    wide = random_layer(keys.shape[1], WIDE)
    for name, own, asked in (
        ("wiki-lm", keys, scored.keys),
        ("random layer", wide(keys[: rows // 2]), wide(scored.keys[: count // 2])),
    ):
        few = len(asked)
        judge = Judge(own, asked, values[: len(own)], scored.targets[:few], scored.log_p[:few])
        lines = [
            (what, size, *judge(coded, query, exact)) for what, size, coded, query, exact in forms(own, asked, settings)
        ]
        base = lines[0][3]
        table = [(*line, f"{100 * (line[3] / base - 1):+.2f} %") for line in lines]
        title = f"{name}: {len(own):,} keys of {own.shape[1]}, {few:,} tokens; the LM alone {judge.lm:.2f}"
        tables.append(Table(title, ("form", "bytes per key", f"recall@{judge.k}", "perplexity", "÷ int8"), table))
        ratios |= {f"{name}, {line[0]}": round(line[3] / base, 4) for line in lines}
    about = {"keys": rows, "tokens": count, "k": K}
    first = tables[0]
    return Result("trade", about, first.columns, first.rows, ratios, tuple(tables[1:]))


def some_keys(store: Datastore, rows: int) -> tuple[Float32, Any]:
    """Return about ``rows`` keys, float32 (n, d), and values (n,), of chunks spread over the largest segment."""
    segment = max(store.segments, key=lambda each: each.rows)
    parts, values = [], []
    chunks = min(segment.chunks, 8)
    for chunk in np.linspace(0, segment.chunks - 1, chunks).astype(int).tolist():
        begin, end = segment.chunk_range(chunk)
        end = min(end, begin + rows // chunks)
        parts.append(decode(segment.keys(begin, end), segment.codec.scales))
        values.append(segment.values(begin, end))
    return np.concatenate(parts), np.concatenate(values).astype(np.int64)


def random_layer(width: int, units: int) -> Callable[[Float32], Float32]:
    """Return a function from keys (n, width) to rectified random features, float32 (n, units)."""
    weights = np.random.default_rng(0).standard_normal((width, units), np.float32) * np.float32(width**-0.5)
    return lambda keys: np.maximum(keys @ weights, np.float32(0))


class Judge:
    """Measures recall and perplexity of forms of keys (n, d), for queries (q, d) with targets and ln p_LM (q,)."""

    def __init__(self, keys: Float32, queries: Float32, values: Int64, targets: Int64, log_lm: Any) -> None:
        self._values, self._targets, self._log_lm = values, targets, log_lm
        self.k = min(K, len(keys) // 4)
        self._half = np.arange(len(queries)) % (2 * PIECE) < PIECE  # for tuning: every other piece of the text
        self._true = nearest(keys, queries, self.k)[1]
        self._last: tuple[Float32, Float32, Int64] | None = None
        self.lm = float(np.exp(-log_lm[~self._half].mean()))

    def __call__(self, keys: Float32, queries: Float32, exact: Float32 | None) -> tuple[float, float]:
        """Return recall@k and perplexity of a form, with its best candidates re-ranked by ``exact`` keys (n, d)."""
        if self._last is None or self._last[0] is not keys:
            depth = 1 if exact is None else LOOKUP_RERANK
            self._last = (keys, *nearest(keys, queries, min(depth * self.k, len(keys))))
        _, distances, rows = self._last
        if exact is None:
            distances, rows = distances[:, : self.k], rows[:, : self.k]
        else:
            distances, rows = self._reranked(rows, queries, exact)
        return round(recall(self._true, rows), 4), round(self.perplexity(distances, rows), 2)

    def _reranked(self, candidates: Int64, queries: Float32, exact: Float32) -> tuple[Float32, Int64]:
        distances = np.stack(
            [np.square(exact[rows] - query).sum(1) for rows, query in zip(candidates, queries, strict=True)]
        )
        order = np.argsort(distances, axis=1)[:, : self.k]
        return np.take_along_axis(distances, order, 1), np.take_along_axis(candidates, order, 1)

    def perplexity(self, distances: Float32, rows: Int64) -> float:
        """Return the perplexity of one half of the tokens, with λ and T from the other."""
        spread = float((distances[:, -1] - distances[:, 0]).mean())
        neighbours = Neighbours(distances, self._values[rows])
        knn = target_probabilities(neighbours, self._targets, (self.k,), (spread * _TEMPERATURES).tolist())[:, 0]
        weights, losses = best_lambda(self._log_lm[self._half], knn[self._half])
        best = int(np.argmin(losses))
        log_p = mix(self._log_lm[~self._half], knn[~self._half, best], float(weights[best]))
        return float(np.exp(-log_p.mean()))


def forms(keys: Float32, queries: Float32, settings: Settings) -> Iterator[Form]:
    """Yield every form, starting with plain int8."""
    width = keys.shape[1]
    exact = _int8(keys)
    yield f"int8 of {width}", width, exact, queries, None
    centre = keys.mean(axis=0)
    sample = keys[:: max(1, len(keys) // PQ_ROWS)]
    axes = principal_axes(sample, width)
    for keep in (width * 3 // 4, width // 2, width // 4, width // 8):
        projected, asked = (keys - centre) @ axes[:, :keep], (queries - centre) @ axes[:, :keep]
        yield f"PCA to {keep}, int8", keep, _int8(projected), asked, None
    nlist = min(NLIST, len(keys) // 40)
    cells, centroids = two_level_kmeans(
        lambda rows: sample[rows], len(sample), nlist, choose_cells(nlist), seed=0, advance=lambda _: None
    )
    lists = Quantiser(cells, centroids, np.empty((0, 0, 0), np.float32)).assign(keys)
    residuals = keys - centroids[lists]
    some = residuals[:: max(1, len(keys) // PQ_ROWS)]
    for size in (32,) if settings.quick else (64, 32, 16):
        rotations = {"": None, f"PCA to {width // 2}, ": principal_axes(some, width // 2)}
        if not settings.quick:
            rotations["OPQ, "] = optimised_axes(some, width, size, 0)
        for way, rotation in rotations.items():
            coded = centroids[lists] + _coded(residuals, some, size, rotation)
            # the deeper search first, because the other one reuses the beginning of its result
            yield f"{way}codes of {size}, re-ranked", size, coded, queries, exact
            yield f"{way}codes of {size}", size, coded, queries, None


def _int8(keys: Float32) -> Float32:
    codec = KeyCodec("int8", scales_of(keys[:16384]))
    return codec.decode(codec.encode(keys))


def _coded(residuals: Float32, some: Float32, size: int, rotation: Float32 | None) -> Float32:
    """Return the residuals decoded from PQ codes."""
    turned, trained = (residuals, some) if rotation is None else (residuals @ rotation, some @ rotation)
    width = turned.shape[1]
    nothing = np.zeros((1, width), np.float32)
    quantiser = Quantiser(nothing, nothing, train_codebooks(trained, size, 0))
    codes = quantiser.encode(turned, np.zeros(len(turned), np.int64))
    decoded = quantiser.decode(codes).numpy()
    return decoded if rotation is None else decoded @ rotation.T


def nearest(keys: Float32, queries: Float32, k: int) -> tuple[Float32, Int64]:
    """Return squared distances, float32 (q, k), and rows, int64 (q, k), of the k nearest keys, nearest first."""
    every, asked = torch.from_numpy(np.ascontiguousarray(keys)), torch.from_numpy(np.ascontiguousarray(queries))
    norms, distances, rows = every.square().sum(1), [], []
    for begin in range(0, len(asked), _QUERIES_AT_ONCE):
        block = asked[begin : begin + _QUERIES_AT_ONCE]
        scores = torch.addmm(norms, block, every.T, alpha=-2)
        least, places = scores.topk(k, largest=False)
        distances.append(least + block.square().sum(1, keepdim=True))
        rows.append(places)
    return torch.cat(distances).clamp_(min=0).numpy(), torch.cat(rows).numpy()
