"""Results as text for people."""

import textwrap
from pathlib import Path

from knnstore.build import IndexReport
from knnstore.ingest import IngestReport
from knnstore.perplexity import Interval, Likelihood, gain_interval
from knnstore.score.result import Example, ScoreReport
from knnstore.sizes import format_size

_WIDTH = 100
_MARGIN = " " * 10


def ingest_text(report: IngestReport) -> str:
    """What an ingest made, and what to do next."""
    speed = f", {report.tokens_per_second:,.0f} tokens/s" if report.tokens_per_second else ""
    kept = f"; {report.tasks_kept} tasks were done before" if report.tasks_kept else ""
    return (
        f"store     {report.store}: {report.rows:,} keys, {format_size(report.bytes)}, "
        f"{report.bytes / report.rows:.0f} bytes a key{speed}{kept}\n"
        f"next      knnstore index --store {shown_store(report.store)}"
    )


def index_text(report: IndexReport, store: Path) -> str:
    """What an index is, and what to do next."""
    plan, check = report.plan, report.check
    queries = "held-out" if check.source == "heldout" else "stored"
    return (
        f"index     {plan.nlist:,} lists, {report.bytes / plan.rows:.0f} bytes a key\n"
        f"check     recall@{check.k} {check.recall:.3f} at nprobe {check.nprobe}, {check.recall_quantised:.3f} from "
        f"the codes alone ({check.queries} {queries} queries against all keys)\n"
        f"next      knnstore score --store {shown_store(store)}"
    )


def score_text(report: ScoreReport) -> str:
    """The perplexities as a table, how they were measured, and the most telling tokens."""
    rows = [
        ("", "perplexity", "95 % interval", "bits/byte"),
        ("LM alone", *_columns(report.base)),
        (f"LM + {report.store}", *_columns(report.knn)),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    setting = report.setting
    tuned = (
        f"tuned on {_documents(report.tuned_documents)} ({report.tuned_tokens:,} tokens) that are not reported on"
        if report.tuned_documents
        else "as given"
    )
    interval = gain_interval(report.base, report.knn)
    seconds = report.seconds
    lines += [
        "",
        f"gain      {report.gain_percent:.1f} % lower perplexity{_within(interval, ' %')}",
        f"setting   k {setting.k}, λ {setting.lambda_:g}, temperature {setting.temperature:g}; {tuned}",
        f"text      {report.text}: {_documents(report.documents)}, {report.tokens:,} tokens",
        f"search    {report.search}",
        f"speed     {report.tokens_per_second:,.0f} tokens/s (LM {seconds.lm:.1f} s, search {seconds.search:.1f} s, "
        f"mixing {seconds.mix:.1f} s)",
    ]
    if report.examples:
        lines += ["", "What the store got right and the LM did not:"]
        for example in report.examples:
            lines += ["", *_example(example)]
    return "\n".join(lines)


def _columns(likelihood: Likelihood) -> tuple[str, str, str]:
    interval = likelihood.perplexity_interval()
    within = f"{interval.low:.2f} – {interval.high:.2f}" if interval else "one document"
    return f"{likelihood.perplexity:.2f}", within, f"{likelihood.bits_per_byte:.4f}"


def _within(interval: Interval | None, unit: str) -> str:
    return f" (95 % interval over documents {interval.low:.1f} – {interval.high:.1f}{unit})" if interval else ""


def _example(example: Example) -> list[str]:
    lines = _wrapped("text", _marked(example.context, example.token))
    lines += _wrapped(
        "LM",
        f"{_quoted(example.lm_token)} {example.lm_p:.0%}, {_quoted(example.token)} {example.lm_p_token:.2%}; "
        f"with the store {_quoted(example.token)} {example.p_token:.0%}",
    )
    return lines + _wrapped("taught by", f"{example.taught_by}: {_marked(example.passage, example.token)}")


def _marked(context: str, token: str) -> str:
    glue = " " if token[:1].isspace() or context[-1:].isspace() else ""
    return f"… {_one_line(context)}{glue}▸{_one_line(token)}◂"


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=label.ljust(10), subsequent_indent=_MARGIN)


def _one_line(text: str) -> str:
    # control characters of a text must not reach the terminal
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _quoted(token: str) -> str:
    return f"“{_one_line(token) or repr(token)[1:-1]}”"


def _documents(count: int) -> str:
    return f"{count:,} document{'' if count == 1 else 's'}"


def shown_store(path: Path) -> str:
    """A store's path as its user would type it."""
    return str(path).removesuffix(".knnstore")


def demo_text(ingest: IngestReport, index: IndexReport, score: ScoreReport) -> str:
    """The three stages in one table, with what to do next."""
    kept = (ingest.bytes + index.bytes) / ingest.rows
    return (
        f"{score_text(score)}\n\n"
        f"store     {ingest.rows:,} keys of {ingest.documents - ingest.heldout_documents:,} documents, "
        f"{kept:.0f} bytes a key with the index; {ingest.tokens_per_second:,.0f} tokens/s in\n"
        f"next      knnstore score --store {shown_store(ingest.store)} --text YOUR.txt, "
        "or knnstore ingest --corpus YOUR-FOLDER/"
    )
