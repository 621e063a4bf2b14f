"""Perplexity over k (each with its best temperature and λ), and over the temperature (at the largest k)."""

from argparse import ArgumentParser, Namespace
from typing import Any

import numpy as np

from experiments.material import Material, perplexity, saved_arguments
from experiments.output import Output
from knnstore.mixing.interpolation import best_lambda
from knnstore.mixing.knn import target_probabilities

_KS = (1, 4, 16, 64, 256, 1024, 2048)
_LAMBDAS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)


def add_arguments(command: ArgumentParser) -> None:
    saved_arguments(command)


def run(arguments: Namespace, output: Output) -> None:
    material = Material.of(arguments)
    grid = output.computed("grid", lambda: _grid(material))
    base, ks, temperatures = grid["lm"], grid["ks"], grid["temperatures"]
    best = [min(line) for line in grid["perplexity"]]
    rows = [["k", "perplexity", "against the LM", "at T"]]
    rows += [
        [str(k), f"{value:.2f}", f"{100 * (value / base - 1):+.1f} %", f"{temperatures[int(np.argmin(line))]:g}"]
        for k, value, line in zip(ks, best, grid["perplexity"], strict=True)
    ]
    others = [(f"T {t:g}", value) for t, value in zip(temperatures, grid["perplexity"][-1], strict=True)]
    others += [(f"λ {step:g}", value) for step, value in zip(_LAMBDAS, grid["by_lambda"], strict=True)]
    rows += [[name, f"{value:.2f}", f"{100 * (value / base - 1):+.1f} %", ""] for name, value in others]
    output.show(rows, f"{material.about}; over all documents, so not for choosing a setting")

    def draw(axes: Any) -> None:
        for k, line in zip(ks, grid["perplexity"], strict=True):
            axes.plot(temperatures, line, label=f"k {k}")
        axes.axhline(base, color="#888", linestyle=":")
        axes.set(xscale="log", xlabel="temperature", ylabel="perplexity, λ tuned")
        axes.legend()

    output.figure(draw)


def _grid(material: Material) -> dict[str, Any]:
    temperatures = material.table.grid.temperatures
    ks = tuple(k for k in _KS if k <= material.saved.facts.k)
    knn, log_lm = [], []
    for block in material.saved.blocks():
        knn.append(target_probabilities(block.evidence.neighbours, block.tokens.targets, ks, temperatures))
        log_lm.append(block.tokens.log_p)
    every, lm = np.concatenate(knn), np.concatenate(log_lm)
    _, losses = best_lambda(lm, every.reshape(len(every), -1))
    surface = np.exp(losses).reshape(len(ks), len(temperatures))
    t = int(np.argmin(surface[-1]))
    at = every[:, -1, t].astype(np.float64)
    by_lambda = [perplexity(np.log(step * at + (1 - step) * np.exp(lm))) for step in _LAMBDAS]
    return {
        "lm": perplexity(lm),
        "ks": list(ks),
        "temperatures": list(temperatures),
        "perplexity": surface.tolist(),
        "by_lambda": by_lambda,
    }
