"""Measure the perplexity as the store grows.

The nearest keys within a random part are the nearest of all keys that are in the part. So one search of the whole
store suffices for all smaller ones, with a proportional k: a quarter of the keys has a quarter of the k.
"""

from argparse import ArgumentParser, Namespace
from functools import partial
from typing import Any

import numpy as np

from experiments.material import Material, perplexity, saved_arguments
from experiments.output import Output
from knnstore.mixing.evidence import Evidence
from knnstore.mixing.interpolation import best_lambda, mix
from knnstore.neighbours import ABSENT, Neighbours
from knnstore.scoring.crossvalidation import FOLDS, folds_of

_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def add_arguments(command: ArgumentParser) -> None:
    saved_arguments(command)


def run(arguments: Namespace, output: Output) -> None:
    material = Material.of(arguments)
    base = output.computed("lm", lambda: perplexity(material.log_lm))
    numbers = [output.computed(f"share {share:g}", partial(_measure, material, share)) for share in _SHARES]
    keys = [int(material.saved.facts.rows * share) for share in _SHARES]
    rows = [["keys", "k", "perplexity", "against the LM"]]
    rows += [
        [f"{count:,}", str(int(material.saved.facts.k * share)), f"{value:.2f}", f"{100 * (value / base - 1):+.1f} %"]
        for count, share, value in zip(keys, _SHARES, numbers, strict=True)
    ]
    output.show(rows, material.about)

    def draw(axes: Any) -> None:
        axes.plot(keys, numbers, marker="o", color="#2a9d6f")
        axes.axhline(base, color="#888", linestyle=":")
        axes.set(xscale="log", xlabel="keys in the store", ylabel="perplexity")

    output.figure(draw)


def _measure(material: Material, share: float) -> float:
    rng = np.random.default_rng(0)
    spread = material.table.spread
    temperatures = tuple(spread * 2.0 ** (exponent / 2) for exponent in range(-9, 2))
    knn = []
    for block in material.saved.blocks():
        part, tokens = Evidence(_part(block.evidence.neighbours, share, rng)), block.tokens
        knn.append(part.store_p(tokens.targets, tokens.log_p, (material.saved.facts.k,), temperatures)[:, 0])
    every, log_lm = np.concatenate(knn), material.log_lm
    fold, _ = folds_of(material.table["document"])
    log_p = np.empty(len(log_lm))
    for number in range(FOLDS):
        held_out, others = fold == number, fold != number
        lambdas, losses = best_lambda(log_lm[others], every[others])
        best = int(np.argmin(losses))
        log_p[held_out] = mix(log_lm[held_out], every[held_out, best], float(lambdas[best]))
    return perplexity(log_p)


def _part(neighbours: Neighbours, share: float, rng: np.random.Generator) -> Neighbours:
    """Keep each neighbour with probability ``share``, in the same order."""
    if share == 1:
        return neighbours
    dropped = rng.random(neighbours.distances.shape) >= share
    distances = np.where(dropped, np.inf, neighbours.distances).astype(np.float32)
    order = np.argsort(distances, axis=1, kind="stable")
    values = np.where(dropped, ABSENT, neighbours.values)
    return Neighbours(np.take_along_axis(distances, order, 1), np.take_along_axis(values, order, 1))
