"""Measure the gain of each part: constants, gate, exact matches and cache, beside the results of the paper."""

from argparse import ArgumentParser, Namespace
from functools import partial
from typing import Any

from experiments.material import Fit, Material, perplexity, saved_arguments
from experiments.output import Output


def add_arguments(command: ArgumentParser) -> None:
    saved_arguments(command)


def run(arguments: Namespace, output: Output) -> None:
    material = Material.of(arguments)
    table = material.table
    fits: dict[str, Fit | None] = {"LM alone": None, "LM + store": material.constants()}
    fits["LM + store, gate"] = material.gate()
    if "matches" in table:
        fits["LM + store, gate with exact matches"] = material.gate(matches=True)
    if "cache" in table:
        fits["LM + cache"] = material.constants(store=False, cache=True)
        fits["LM + store + cache"] = material.constants(cache=True)
        fits["LM + store + cache, gate with exact matches"] = material.gate(matches="matches" in table, cache=True)
    base = output.computed("LM alone", lambda: perplexity(material.log_lm))
    numbers = {name: output.computed(name, partial(_measure, material, fit)) for name, fit in fits.items()}
    rows = [["", "perplexity", "against the LM", "paper", "against its LM"]]
    for name, number in numbers.items():
        paper = output.paper.get(name)
        rows.append([name, f"{number:.2f}", _against(number, base), *_paper(paper, output.paper["LM alone"])])
    output.show(rows, material.about)

    def draw(axes: Any) -> None:
        names = list(numbers)[::-1]
        axes.barh(names, [numbers[name] for name in names], color="#2a9d6f")
        axes.set_xlabel("perplexity")

    output.figure(draw, (8, 3.6))


def _measure(material: Material, fit: Fit | None) -> float:
    return perplexity(material.log_lm if fit is None else material.kept_out(fit))


def _against(number: float, base: float) -> str:
    return "" if number == base else f"{100 * (number / base - 1):+.1f} %"


def _paper(number: float | None, base: float) -> list[str]:
    return ["", ""] if number is None else [f"{number:.2f}", _against(number, base)]
