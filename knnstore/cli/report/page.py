"""The page of ``score --report``: self-contained HTML without scripts; every text is escaped."""

import math
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np

from knnstore.cli.report.svg import bars, heat_map, lines
from knnstore.cli.report.words import documents, gain_words, one_line, setting_words
from knnstore.files import write_atomically
from knnstore.outputs import output_file
from knnstore.perplexity import Likelihood, gain_interval, gain_percent
from knnstore.scoring.details import Details, Telling
from knnstore.scoring.overlap import Overlap
from knnstore.scoring.result import ScoreReport

_MOST_DOCUMENTS = 40
_EDGES = (0, 1, 10, 100, 1000, 10_000)
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.15rem;margin-top:2.2rem}
.lead{color:color-mix(in srgb,currentColor 70%,transparent)}
table{border-collapse:collapse}td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #8885}
td:first-child,th:first-child{text-align:left}
.big{font-size:2.6rem;font-weight:650;line-height:1.2}
.scroll{overflow-x:auto}svg text{font:11px system-ui,sans-serif;fill:currentColor}svg .cell{fill:#111}
svg .good{fill:#2a9d6f}svg .bad{fill:#d1495b}polyline{fill:none;stroke-width:2}
.axis,.diagonal{stroke:#888;stroke-width:1}.diagonal{stroke-dasharray:4 4}
.line0{stroke:#888}.line1{stroke:#2a9d6f}svg .name0{fill:#888}svg .name1{fill:#2a9d6f}
.token{border:1px solid #8885;border-radius:6px;padding:.6rem .9rem;margin:.7rem 0}
mark{background:#ffd76a;color:#111;padding:0 .15em}.near{font-size:.9rem;margin:.3rem 0 0 1rem}
.source{color:color-mix(in srgb,currentColor 60%,transparent)}
"""


def write_page(report: ScoreReport, path: str | Path) -> None:
    """Write the page atomically. The report must have details. Raises ResourceError."""
    write_atomically(output_file(str(path), "report"), page(report).encode())


def page(report: ScoreReport) -> str:
    """Return the page as HTML."""
    details = report.details
    assert details is not None
    title = f"{report.model} + {report.store}"
    sections = [
        ("", _headline(report)),
        ("Overlap with the store", _overlap(report.overlap)),
        ("Perplexity over k and temperature, each with its best λ", _surfaces(report, details)),
        ("Perplexity by document", _by_document(report, details)),
        ("Gain by frequency of the token in the store", _by_frequency(details)),
        ("Gain by distance of the nearest neighbour", _by_distance(details)),
        ("Calibration of the LM's most probable token", _calibration(details)),
        ("Tokens improved most", _tokens(details.helped)),
        ("Tokens worsened most", _tokens(details.harmed)),
    ]
    body = "".join((f"<h2>{escape(name)}</h2>" if name else "") + content for name, content in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _headline(report: ScoreReport) -> str:
    interval = gain_interval(report.base, report.knn)
    within = f"; 95 % interval over documents {interval.low:.1f} – {interval.high:.1f} %" if interval else ""
    tuned = f"tuned on {documents(report.tuned_documents, 'other ')}" if report.tuned_documents else report.setting_from
    rows = [("LM alone", report.base)]
    name = "LM + store" + (" + cache" if report.setting.cache else "")
    if report.constant is not None:
        rows.append((name, report.constant))
        name = "… weighted by the gate"
    rows.append((name, report.knn))
    cells = "".join(_row(name, likelihood, report.base) for name, likelihood in rows)
    facts = f"{report.text}: {documents(report.documents)}, {report.tokens:,} tokens. {report.search}."
    setting = f"{setting_words(report.setting)}; {tuned}."
    return (
        f'<p class="lead">{escape(facts)}</p><p class="big">{gain_words(report.gain_percent)}</p>'
        f'<p class="lead">{report.base.perplexity:.2f} → {report.knn.perplexity:.2f}{escape(within)}</p>'
        f"<table><tr><th></th><th>perplexity</th><th>bits/byte</th><th>gain</th></tr>{cells}</table>"
        f"<p>{escape(setting)}</p>"
    )


def _row(name: str, likelihood: Likelihood, base: Likelihood) -> str:
    gain = "" if likelihood is base else f"{gain_percent(base, likelihood):.1f} %"
    return (
        f"<tr><td>{escape(name)}</td><td>{likelihood.perplexity:.2f}</td><td>{likelihood.bits_per_byte:.4f}</td>"
        f"<td>{gain}</td></tr>"
    )


def _overlap(overlap: Overlap) -> str:
    rows = "".join(
        f"<tr><td>{escape(one_line(document.document))}</td><td>{document.share:.1%}</td>"
        f"<td>{escape(document.source)}</td><td>{'yes' if document.identical else 'no'}</td></tr>"
        for document in overlap.documents[:_MOST_DOCUMENTS]
    )
    names = "<tr><th>document</th><th>shared tokens</th><th>mostly in</th><th>identical</th></tr>"
    table = f'<div class="scroll"><table>{names}{rows}</table></div>' if rows else ""
    shown = min(len(overlap.documents), _MOST_DOCUMENTS)
    note = f" The first {shown} of {len(overlap.documents)} documents." if shown < len(overlap.documents) else ""
    return f'<p class="lead">{escape(overlap.words)}.{note}</p>{table}'


def _surfaces(report: ScoreReport, details: Details) -> str:
    grid, setting = details.grid, report.setting
    temperatures = [f"{temperature:g}" for temperature in grid.temperatures]
    t = int(np.argmin(np.abs(np.log(np.array(grid.temperatures) / setting.temperature))))
    k = int(np.argmin(np.abs(np.array(grid.ks) - setting.k)))
    steps = np.array(details.lambda_steps)
    first = heat_map(
        details.perplexities,
        [str(value) for value in grid.ks],
        temperatures,
        across="temperature",
        down="k",
        chosen=(k, t),
    )
    shown = slice(0, len(steps), 2)
    second = heat_map(
        details.by_lambda[:, shown],
        temperatures,
        [f"{step:g}" for step in steps[shown]],
        across="λ",
        down="T",
        chosen=(t, int(np.argmin(np.abs(steps[shown] - setting.lambda_)))),
    )
    note = "On a sample of the reported text, without cache or gate; for information, not for choosing a setting. "
    note += "The frame marks the values nearest to the setting."
    return (
        f'<p class="lead">{escape(note)}</p><div class="scroll">{first}</div>'
        f'<h2>Perplexity over temperature and λ, k {grid.ks[k]}</h2><div class="scroll">{second}</div>'
    )


def _by_document(report: ScoreReport, details: Details) -> str:
    base, knn = (np.exp(likelihood.nats / likelihood.tokens) for likelihood in (report.base, report.knn))
    shown = np.argsort(-report.base.tokens, kind="stable")[:_MOST_DOCUMENTS]
    shown = shown[np.argsort(knn[shown] / base[shown])]
    gains = [100 * (1 - float(knn[i] / base[i])) for i in shown]
    names = [_shortened(report.names[i]) for i in shown]
    labels = [f"{gain:+.1f} %  {base[i]:.1f} → {knn[i]:.1f}" for i, gain in zip(shown, gains, strict=True)]
    note = f"The {len(shown)} longest of {len(base)}, by gain." if len(shown) < len(base) else "By gain."
    return f'<p class="lead">{note}</p><div class="scroll">{bars(names, gains, labels)}</div>'


def _by_frequency(details: Details) -> str:
    group = np.searchsorted(np.array(_EDGES), details.frequency, side="right")
    between = [f"{low:,} to {high:,}" for low, high in pairwise(_EDGES[1:])]
    names = ["never", "below 1 per million", *between, f"{_EDGES[-1]:,} per million or more"]
    group = np.where(details.frequency == 0, 0, group)
    return _gains(details, group, names)


def _by_distance(details: Details) -> str:
    edges = np.quantile(details.distance, np.linspace(0, 1, 9)[1:-1])
    group = np.searchsorted(edges, details.distance)
    names = ["nearest eighth", *("" for _ in range(6)), "farthest eighth"]
    return _gains(details, group, names)


def _gains(details: Details, group: "np.ndarray[tuple[int], np.dtype[np.int64]]", names: list[str]) -> str:
    """Return bars of the reduction in perplexity for each group of tokens that isn't empty."""
    chosen, gains, labels = [], [], []
    for number, name in enumerate(names):
        here = group == number
        if here.any():
            lm, p = (math.exp(-float(column[here].mean())) for column in (details.log_lm, details.log_p))
            chosen.append(name)
            gains.append(100 * (1 - p / lm))
            labels.append(f"{gains[-1]:+.1f} %  {lm:,.1f} → {p:,.1f}  ({here.mean():.0%} of tokens)")
    return f'<div class="scroll">{bars(chosen, gains, labels)}</div>'


def _calibration(details: Details) -> str:
    lm, p, right = details.first_choice.T
    series = {"LM alone": _reliability(lm, right)}
    note = "How often the LM's most probable token is right, against its probability."
    if np.isfinite(p).all():
        series["with the store"] = _reliability(p, right)
    else:
        note += " With a cache, only the LM's own is known."
    chart = lines(series, across="probability", up="share that is right")
    return f'<p class="lead">{escape(note)}</p>{chart}'


def _reliability(p: "np.ndarray[tuple[int], np.dtype[np.float64]]", right: object) -> tuple[list[float], list[float]]:
    bins = np.minimum((p * 10).astype(int), 9)
    filled = [number for number in range(10) if (bins == number).sum() >= 20]
    hits = np.asarray(right)
    return [float(p[bins == n].mean()) for n in filled], [float(hits[bins == n].mean()) for n in filled]


def _tokens(tokens: tuple[Telling, ...]) -> str:
    return "".join(map(_token, tokens)) or "<p>None.</p>"


def _token(token: Telling) -> str:
    near = "".join(
        f'<p class="near"><span class="source">{escape(n.source)}, at {n.distance:.1f}:</span> '
        f"… {escape(one_line(n.before))} <mark>{escape(one_line(n.token))}</mark></p>"
        for n in token.neighbours
    )
    return (
        f'<div class="token">… {escape(one_line(token.before))} <mark>{escape(one_line(token.token))}</mark> '
        f'<span class="source">{token.lm_p:.2%} → {token.p:.2%}, in {escape(token.document)}</span>{near}</div>'
    )


def _shortened(name: str) -> str:
    last = name.rsplit("/", 1)[-1]
    return last if len(last) <= 24 else f"{last[:23]}…"
