"""The report of a score as text."""

from knnstore.cli.report.words import documents, gain_words, marked, one_line, quoted, setting_words, table, wrapped
from knnstore.perplexity import Interval, Likelihood, gain_interval
from knnstore.scoring.overlap import Overlap
from knnstore.scoring.result import Example, ScoreReport

_MOST_OVERLAPS = 5  # documents listed by name


def score_text(report: ScoreReport) -> str:
    """Return a table of perplexities, how they were measured, and example tokens."""
    rows = [
        ("", "perplexity", "95 % interval", "bits/byte"),
        ("LM alone", *_columns(report.base)),
    ]
    with_store = f"LM + {report.store}" + (" + cache" if report.setting.cache else "")
    if report.constant is not None:
        rows += [(with_store, *_columns(report.constant)), ("… weighted by the gate", *_columns(report.knn))]
    else:
        rows.append((with_store, *_columns(report.knn)))
    lines = table(rows)
    setting = report.setting
    tuned = (
        f"tuned on {documents(report.tuned_documents, 'other ')} ({report.tuned_tokens:,} tokens)"
        if report.tuned_documents
        else report.setting_from
    )
    interval = gain_interval(report.base, report.knn)
    seconds = report.seconds
    lines += [
        "",
        f"gain      {gain_words(report.gain_percent)}{_within(interval, ' %')}",
        *wrapped("setting", f"{setting_words(setting)}; {tuned}"),
        f"text      {report.text}: {documents(report.documents)}, {report.tokens:,} tokens",
        *overlap_lines(report.overlap),
        f"search    {report.search}",
        f"speed     {report.tokens_per_second:,.0f} tokens/s (LM {seconds.lm:.1f} s, search {seconds.search:.1f} s, "
        f"mixing {seconds.mix:.1f} s); overlap {report.overlap.seconds:.1f} s",
    ]
    if report.examples:
        lines += ["", "Tokens that the store predicted and the LM did not:"]
        for example in report.examples:
            lines += ["", *_example(example)]
    return "\n".join(lines)


def overlap_lines(overlap: Overlap) -> list[str]:
    """Return the share of the text that the store repeats, and the documents concerned."""
    lines = wrapped("overlap", overlap.words)
    for document in overlap.documents[:_MOST_OVERLAPS]:
        same = "identical to" if document.identical else "mostly in"
        lines += wrapped("", f"{one_line(document.document)}: {document.share:.0%}, {same} {document.source}")
    if more := len(overlap.documents) - _MOST_OVERLAPS:
        lines += [f"{'':10}and {documents(more)} more"] if more > 0 else []
    return lines


def _columns(likelihood: Likelihood) -> tuple[str, str, str]:
    interval = likelihood.perplexity_interval()
    within = f"{interval.low:.2f} – {interval.high:.2f}" if interval else "one document"
    return f"{likelihood.perplexity:.2f}", within, f"{likelihood.bits_per_byte:.4f}"


def _within(interval: Interval | None, unit: str) -> str:
    return f" (95 % interval over documents {interval.low:.1f} – {interval.high:.1f}{unit})" if interval else ""


def _example(example: Example) -> list[str]:
    lines = wrapped("text", marked(example.context, example.token))
    lines += wrapped(
        "LM",
        f"{quoted(example.lm_token)} {example.lm_p:.0%}, {quoted(example.token)} {example.lm_p_token:.2%}; "
        f"with the store {quoted(example.token)} {example.p_token:.0%}",
    )
    return lines + wrapped("source", f"{example.taught_by}: {marked(example.passage, example.token)}")
