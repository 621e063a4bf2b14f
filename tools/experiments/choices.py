"""Compare forms of keys: layer, distance, fewer dimensions, int8 and PQ, by perplexity and bytes per key.

All use the same texts and the same documents for measurement; k, T and λ are chosen for each form on other documents.
faiss searches every key.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import faiss
import numpy as np

from experiments.material import perplexity
from experiments.output import Output
from experiments.scoring import Scores, scores_of, some_texts
from knnstore.arrays import Float32
from knnstore.datastore.keycodec import KeyCodec, scales_of
from knnstore.datastore.manifest import KeyRecipe
from knnstore.lm.forward import KeyModel, window_keys
from knnstore.lm.loading import load_model
from knnstore.lm.spec import LmSpec, default_model
from knnstore.neighbours import Neighbours
from knnstore.scoring.texts import Texts
from knnstore.windows import cut_windows

_LAYERS = ("ffn-input", "hidden", "attention-input")
_TRAINED_ON = 100_000
_BATCH_TOKENS = 4096


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("--corpus", nargs="+", required=True, help="files to compute keys of")
    command.add_argument("--text", nargs="+", required=True, help="files to score")
    command.add_argument("--model", default=default_model())
    command.add_argument("--keys", type=int, default=300_000, help="maximum keys, spread over the documents")
    command.add_argument("--tokens", type=int, default=10_000, help="tokens to score, spread over the documents")
    command.add_argument("--k", type=int, default=1024)


def run(arguments: Namespace, output: Output) -> None:
    measured: dict[str, tuple[float, float]] = {}
    base = 0.0
    for layer in _LAYERS:
        made = MadeKeys(arguments, layer)
        base = output.computed("LM alone", made.alone)
        forms = ALL_FORMS if layer == _LAYERS[0] else {"L2, float16": ALL_FORMS["L2, float16"]}
        for name, form in forms.items():
            key = f"{layer}: {name}"
            measured[key] = output.computed(key, partial(made.measure, form))
    best = measured[f"{_LAYERS[0]}: L2, float16"][1]
    rows = [["key", "bytes", "perplexity", "against the LM", "against float16"]]
    for name, (size, value) in measured.items():
        rows.append([name, f"{size:.0f}", f"{value:.2f}", _change(value, base), _change(value, best)])
    output.show(rows, f"at most {arguments.keys:,} keys and {arguments.tokens:,} tokens; LM alone {base:.2f}")

    def draw(axes: Any) -> None:
        for name, (size, value) in measured.items():
            axes.plot(size, value, "o", color="#2a9d6f")
            axes.annotate(name.split(": ")[1], (size, value), fontsize=7)
        axes.set(xscale="log", xlabel="bytes per key", ylabel="perplexity")

    output.figure(draw, (8, 5))


def _change(value: float, of: float) -> str:
    return f"{100 * (value / of - 1):+.1f} %"


class MadeKeys:
    """Keys of one layer, and a text's tokens with their keys as queries."""

    def __init__(self, arguments: Namespace, layer: str) -> None:
        self._arguments, self._layer = arguments, layer

    @cached_property
    def _model(self) -> KeyModel:
        return KeyModel(load_model(LmSpec(self._arguments.model, self._layer)), self._layer)

    @cached_property
    def _recipe(self) -> KeyRecipe:
        context = self._model.loaded.default_context
        return KeyRecipe(self._layer, self._model.loaded.model.config.hidden_size, context, context // 2)

    @cached_property
    def _texts(self) -> Texts:
        return some_texts(self._arguments.corpus, self._model, self._arguments.keys)

    @cached_property
    def scores(self) -> Scores:
        """Return the LM's scores of the text."""
        return scores_of(
            self._model, some_texts(self._arguments.text, self._model, self._arguments.tokens), self._recipe
        )

    def alone(self) -> float:
        """Return the perplexity of the LM."""
        return perplexity(self.scores.tokens.log_p)

    @cached_property
    def keys(self) -> Float32:
        """Return the keys of the corpus, float32 (n, d)."""
        texts, recipe = self._texts, self._recipe
        windows = cut_windows(texts.first, texts.tokens, context=recipe.context, stride=recipe.stride)
        keys = np.empty((len(texts.ids), recipe.dimension), np.float32)
        for rows, part in window_keys(self._model, windows, texts.read, _BATCH_TOKENS):
            keys[rows] = part
        return keys

    def measure(self, form: "Form") -> tuple[float, float]:
        """Return the bytes per key of a form, and the perplexity with its neighbours."""
        scores, values = self.scores, self._texts.ids.astype(np.int64)
        prepared, queries = form.prepared(self.keys, scores.tokens.keys)
        k = min(self._arguments.k, len(values))
        distances, rows = _nearest(prepared, queries, k, form.distance)
        return form.size(self._recipe.dimension), scores.kept_out(Neighbours(distances, values[rows]))


def _nearest(keys: Float32, queries: Float32, k: int, distance: str) -> tuple[Float32, Any]:
    metric = faiss.METRIC_L2 if distance == "L2" else faiss.METRIC_INNER_PRODUCT
    similarity, rows = faiss.knn(queries, keys, k, metric=metric)
    return (similarity if distance == "L2" else -2 * similarity), rows


@dataclass(frozen=True)
class Form:
    """A form of keys: ``distance`` (L2, inner product or cosine), ``share`` of d that PCA keeps, and the codec.

    ``codec``: float16, int8, or PQ with the number of dimensions per byte (``pq4``).
    """

    distance: str = "L2"
    share: float = 1.0
    codec: str = "float16"

    def size(self, dimension: int) -> float:
        """Return the bytes per key."""
        width = dimension * self.share
        return {"float16": 2 * width, "int8": width}.get(self.codec) or width / int(self.codec.removeprefix("pq"))

    def prepared(self, keys: Float32, queries: Float32) -> tuple[Float32, Float32]:
        """Return keys decoded from this form and matching queries: float32 (n, d) and (m, d)."""
        if self.distance == "cosine":
            keys, queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (keys, queries))
        sample = np.ascontiguousarray(keys[:: max(1, len(keys) // _TRAINED_ON)])
        if self.share < 1:
            pca = faiss.PCAMatrix(keys.shape[1], int(keys.shape[1] * self.share))
            pca.train(sample)
            keys, queries, sample = (pca.apply(np.ascontiguousarray(each)) for each in (keys, queries, sample))
        if self.codec.startswith("pq"):
            index = faiss.IndexPQ(keys.shape[1], keys.shape[1] // int(self.codec.removeprefix("pq")), 8)
            index.train(sample)
            return index.sa_decode(index.sa_encode(np.ascontiguousarray(keys))), queries
        codec = KeyCodec("int8", scales_of(sample)) if self.codec == "int8" else KeyCodec("float16")
        return codec.decode(codec.encode(keys)), queries


ALL_FORMS = {
    "L2, float16": Form(),
    "inner product, float16": Form("inner product"),
    "cosine, float16": Form("cosine"),
    "L2, int8": Form(codec="int8"),
    **{f"L2, PCA d/{n}, float16": Form(share=1 / n) for n in (2, 4, 8)},
    **{f"L2, PCA d/{n}, int8": Form(share=1 / n, codec="int8") for n in (2, 4)},
    **{f"L2, PQ of d/{n} bytes": Form(codec=f"pq{n}") for n in (2, 4, 8)},
}
