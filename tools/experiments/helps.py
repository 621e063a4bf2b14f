"""Show where the store helps and where it hurts, with the best constants and with the gate."""

from argparse import ArgumentParser, Namespace
from itertools import pairwise
from typing import Any

import numpy as np

from experiments.material import Material, perplexity, saved_arguments
from experiments.output import Output
from knnstore.lm.loading import load_model
from knnstore.lm.spec import LmSpec
from knnstore.mixing.features import FEATURES

_EDGES = (1, 10, 100, 1000, 10_000)


def add_arguments(command: ArgumentParser) -> None:
    saved_arguments(command)


def run(arguments: Namespace, output: Output) -> None:
    material = Material.of(arguments)
    table = output.computed("groups", lambda: _groups(material))
    rows = [["tokens", "share", "LM alone", "LM + store", "gate"]]
    for name, share, lm, constant, gate in table:
        changes = [f"{value:.1f} ({100 * (value / lm - 1):+.0f} %)" for value in (constant, gate)]
        rows.append([name, f"{share:.1%}", f"{lm:.1f}", *changes])
    output.show(rows, material.about)

    def draw(axes: Any) -> None:
        names = [row[0] for row in table][::-1]
        axes.barh(names, [100 * (row[4] / row[2] - 1) for row in table][::-1], color="#2a9d6f")
        axes.set_xlabel("change of the perplexity by store and gate, %")

    output.figure(draw, (7, 6))


def _groups(material: Material) -> list[list[Any]]:
    log_lm, targets = material.log_lm, material.targets
    constant = material.kept_out(material.constants())
    gate = material.kept_out(material.gate(matches="matches" in material.table))
    frequency = _frequencies(material)[targets]
    group = np.searchsorted(_EDGES, frequency, side="right")
    groups = {"all": np.ones(len(targets), bool)}
    between = [f"{low:,} – {high:,}" for low, high in pairwise(_EDGES)]
    names = ["below 1", *between, f"{_EDGES[-1]:,} and more"]
    groups |= {f"{name} a million": group == number for number, name in enumerate(names)}
    model = load_model(LmSpec(material.saved.facts.model.name))
    kinds = np.array([_kind(model.decode([token])) for token in range(model.identity.vocabulary)])[targets]
    groups |= {kind: kinds == kind for kind in sorted(set(kinds.tolist()))}
    distance = material.table["features"][:, FEATURES.index("first_distance")]
    edges = np.quantile(distance, [0.25, 0.5, 0.75])
    quarter = np.searchsorted(edges, distance)
    groups |= {f"{name} quarter": quarter == n for n, name in enumerate(("nearest", "second", "third", "farthest"))}
    harmed = gate < log_lm
    groups |= {"tokens that the gate harms": harmed, "tokens that it helps": ~harmed}
    return [
        [name, float(members.mean()), *(perplexity(log_p[members]) for log_p in (log_lm, constant, gate))]
        for name, members in groups.items()
        if members.any()
    ]


def _frequencies(material: Material) -> Any:
    counts = np.zeros(material.saved.facts.model.vocabulary)
    for segment in material.store.segments:
        counts += np.bincount(segment.values(0, segment.rows), minlength=len(counts))
    return counts * 1e6 / counts.sum()


def _kind(text: str) -> str:
    """Return the word class of a token, from its characters."""
    word = text.strip()
    if not word:
        return "blank"
    if word.isdigit():
        return "number"
    if not any(character.isalpha() for character in word):
        return "punctuation"
    if not text.startswith(" "):
        return "rest of a word"
    return "capitalised word" if word[0].isupper() else "small word" if len(word) <= 3 else "word"
