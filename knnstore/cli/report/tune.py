"""The result of tuning as text and as JSON."""

from typing import Any

from knnstore.cli.report.words import documents, setting_words, shown_store, table
from knnstore.perplexity import Likelihood, gain_percent
from knnstore.scoring.crossvalidation import TuneReport


def tune_text(report: TuneReport) -> str:
    """Return the grid over k and T, and the perplexity of constants and gate on unseen documents."""
    record = report.record
    best = min(min(line) for line in report.perplexities)
    header = ["k \\ T", *(f"{temperature:g}" for temperature in report.temperatures)]
    grid = [
        [str(k), *(f"{value:.2f}{'*' if value == best else ''}" for value in line)]
        for k, line in zip(report.ks, report.perplexities, strict=True)
    ]
    lines = [*table([header, *grid]), "", *table(_measured(report)), ""]
    kept_out = (
        f"{report.parts} parts of {documents(report.documents)}, each with the setting tuned on the other parts"
        if report.parts
        else f"{documents(report.documents)}, each with the setting tuned on the others"
    )
    lines += [
        f"setting   {setting_words(record.setting)}" + ("; a gate sets the weight per token" if record.gate else ""),
        f"text      {record.text}: {record.tokens:,} tokens; measured on {kept_out}",
    ]
    if report.saved:
        lines.append(
            f"next      knnstore score --store {shown_store(report.store)} --text YOUR.txt, which uses this setting"
        )
    return "\n".join(lines)


def tune_json(report: TuneReport) -> dict[str, Any]:
    """Return the object that ``--json`` prints."""
    record = report.record
    return {
        "store": report.store,
        "saved": report.saved,
        "k": record.setting.k,
        "lambda": record.setting.lambda_,
        "temperature": record.setting.temperature,
        "cache": record.setting.cache,
        "cache_weight": record.setting.cache_weight,
        "cache_temperature": record.setting.cache_temperature,
        "adaptive": record.gate is not None,
        "documents": report.documents,
        "tokens": record.tokens,
        "perplexity": {
            "lm": report.base.perplexity,
            "constant": report.constant.perplexity,
            "gate": None if report.gated is None else report.gated.perplexity,
        },
        "grid": {
            "k": list(report.ks),
            "temperature": list(report.temperatures),
            "perplexity": [list(line) for line in report.perplexities],
            "lambda": [list(line) for line in report.lambdas],
        },
    }


def _measured(report: TuneReport) -> list[list[str]]:
    def line(name: str, likelihood: Likelihood) -> list[str]:
        gain = gain_percent(report.base, likelihood)
        return [name, f"{likelihood.perplexity:.2f}", "" if likelihood is report.base else f"{-gain:+.1f} %"]

    lines = [["", "perplexity", ""], line("LM alone", report.base), line("constant weights", report.constant)]
    if report.gated is not None:
        lines.append(line("gate", report.gated))
    return lines
