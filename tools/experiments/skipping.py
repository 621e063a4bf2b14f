"""Measure the perplexity when searches are skipped where they are expected to gain least.

The gain of a search is predicted by least squares on the features known before it, and their products. With ``--text``,
some of its tokens are scored by the LM and searched for each share of skipped searches, and the table shows the tokens
per second.
"""

from argparse import ArgumentParser, Namespace
from time import perf_counter
from typing import Any

import numpy as np

from experiments.material import Material, perplexity, saved_arguments
from experiments.output import Output
from experiments.scoring import scores_of, some_texts
from knnstore.datastore.stores import Stores
from knnstore.lm.forward import key_model
from knnstore.lm.spec import LmSpec, default_model
from knnstore.mixing.features import FEATURES, LM_FEATURES
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.search import StoresSearch

_MEMORY = 2**30
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def add_arguments(command: ArgumentParser) -> None:
    saved_arguments(command)
    command.add_argument("--text", nargs="+", default=[], help="the scored text, to measure tokens per second")
    command.add_argument("--tokens", type=int, default=20_000, help="tokens of it, spread over the documents")
    command.add_argument("--model", default=default_model())


def run(arguments: Namespace, output: Output) -> None:
    material = Material.of(arguments)
    curves = output.computed("curves", lambda: _curves(material))
    names = list(curves)
    speeds = output.computed("tokens a second", lambda: _speeds(arguments, material)) if arguments.text else []
    rows = [["searches skipped", *names, *(["tokens/s"] if speeds else [])]]
    for i, share in enumerate(_SHARES):
        perplexities = [f"{curves[name][i]:.2f}" for name in names]
        rows.append([f"{share:.0%}", *perplexities, *(f"{speed:,.0f}" for speed in speeds[i : i + 1])])
    output.show(rows, material.about)

    def draw(axes: Any) -> None:
        for name in names:
            axes.plot(speeds or [100 * share for share in _SHARES], curves[name], marker="o", label=name)
        axes.set(xlabel="tokens/s" if speeds else "searches skipped, %", ylabel="perplexity")
        axes.legend()

    output.figure(draw)


def _curves(material: Material) -> dict[str, list[float]]:
    log_lm, mixed = material.log_lm, material.kept_out(material.constants())
    gain = mixed - log_lm
    every = material.table["features"]
    known = np.concatenate([every[:, : len(LM_FEATURES)], every[:, len(FEATURES) :]], axis=1)
    predicted = material.kept_out(lambda learned, measured: _predict(known[learned], gain[learned], known[measured]))
    at_random = np.random.default_rng(0).permutation(len(gain)).astype(float)
    return {
        "at random": _curve(at_random, log_lm, mixed),
        "by the LM's entropy": _curve(known[:, 0], log_lm, mixed),
        "by the predicted gain": _curve(predicted, log_lm, mixed),
        "by the gain itself": _curve(gain, log_lm, mixed),
    }


def _curve(worth: Any, log_lm: Any, mixed: Any) -> list[float]:
    order = np.argsort(worth, kind="stable")
    result = []
    for share in _SHARES:
        log_p = mixed.copy()
        skipped = order[: round(share * len(order))]
        log_p[skipped] = log_lm[skipped]
        result.append(perplexity(log_p))
    return result


def _predict(features: Any, gain: Any, asked: Any) -> Any:
    centre, scale = features.mean(axis=0), features.std(axis=0) + 1e-6

    def expanded(values: Any) -> Any:
        z = np.clip((values - centre) / scale, -5, 5).astype(np.float64)
        pairs = [z[:, i] * z[:, j] for i in range(z.shape[1]) for j in range(i + 1)]
        return np.stack([np.ones(len(z)), *z.T, *pairs], axis=1)

    design = expanded(features)
    solved = np.linalg.solve(design.T @ design + len(design) * 1e-4 * np.eye(design.shape[1]), design.T @ gain)
    return expanded(asked) @ solved


def _speeds(arguments: Namespace, material: Material) -> list[float]:
    """Return the tokens per second of LM and search for each share of skipped searches."""
    store = material.store
    model = key_model(LmSpec(arguments.model, store.manifest.key.layer))
    texts = some_texts(arguments.text, model, arguments.tokens)
    started = perf_counter()
    keys = scores_of(model, texts, store.manifest.key).tokens.keys
    scored = perf_counter() - started
    search, order = (
        StoresSearch(Stores([store]), ScoreOptions(), _MEMORY),
        np.random.default_rng(0).permutation(len(keys)),
    )
    k = min(material.saved.facts.k, store.rows)
    search(keys[order], k)  # so that the lists are in the page cache for all shares
    speeds = []
    for share in _SHARES:
        asked = order[: len(keys) - round(share * len(keys))]
        started = perf_counter()
        if len(asked):
            search(keys[np.sort(asked)], k)
        speeds.append(len(keys) / (scored + perf_counter() - started))
    return speeds
