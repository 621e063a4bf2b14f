"""The contents of the page as HTML. All text from a store, an LM or a user is escaped here."""

from html import escape

import numpy as np

from knnstore.attribution import Attribution
from knnstore.explore.analysis import Analysis, Scored, TokenChoice, WeighedNeighbour
from knnstore.generation import WrittenToken
from knnstore.passages import Passage

# Nats of full colour: the token is e³ = 20 times as probable as for the LM alone.
_FULL = 3.0
_CONTEXT_PIECES = 24
_DOCUMENTS = 8


def heading(name: str, rows: int, model: str, layer: str) -> str:
    """Return the heading with name, size and model of the store."""
    return f"<h1>{escape(name)}</h1><p>{rows:,} keys of {escape(model)}, {escape(layer)}</p>"


def numbers(scored: Scored, note: str) -> str:
    """Return the two perplexities, the gain and the number of tokens improved."""
    gain = 100 * (1 - scored.perplexity / scored.lm_perplexity)
    helped = int((scored.log_p > scored.log_lm + 1e-9).sum())
    word = "lower" if gain >= 0 else "higher"
    return (
        '<div class="numbers">'
        f'<div><b id="ppl-lm">{scored.lm_perplexity:,.2f}</b><span>perplexity of the LM alone</span></div>'
        f'<div><b id="ppl-mix">{scored.perplexity:,.2f}</b><span>with the store</span></div>'
        f'<div class="{"better" if gain >= 0 else "worse"}"><b id="gain">{abs(gain):.1f} %</b>'
        f"<span>{word} perplexity</span></div>"
        f"<div><b>{helped:,} / {len(scored.log_p):,}</b><span>tokens made more probable</span></div>"
        f'</div><p class="note">{escape(note)}</p>'
    )


def note(words: str) -> str:
    """Return a remark."""
    return f'<p class="note">{escape(words)}</p>'


def tokens(analysis: Analysis, scored: Scored, selected: int | None) -> str:
    """Return the text with every token coloured: more (blue) or less (orange) probable with the store."""
    gains = scored.log_p - scored.log_lm
    spans = []
    for number, (piece, gain) in enumerate(zip(analysis.pieces, gains, strict=True)):
        strength = min(abs(float(gain)) / _FULL, 1.0)
        colour = "up" if gain >= 0 else "down"
        chosen = " chosen" if number == selected else ""
        title = f"p {_percent(np.exp(scored.log_lm[number]))} → {_percent(np.exp(scored.log_p[number]))}"
        body = piece.lstrip(" ")
        text = escape(body).replace("\n", "<i>↵</i>\n") or "<i>·</i>"
        space = piece[: len(piece) - len(body)]  # outside the coloured part, so that the line may break there
        spans.append(
            f'{space}<span class="tok {colour}{chosen}" data-i="{number}" tabindex="0" role="button" '
            f'title="{title}" style="--s:{strength:.3f}">{text}</span>'
        )
    return f'<div class="text">{"".join(spans)}</div>'


def legend() -> str:
    """Return the legend of the colours."""
    steps = "".join(f'<span class="tok down" style="--s:{s}">&nbsp;</span>' for s in (1, 0.66, 0.33))
    steps += '<span class="tok up" style="--s:0">&nbsp;</span>'
    steps += "".join(f'<span class="tok up" style="--s:{s}">&nbsp;</span>' for s in (0.33, 0.66, 1))
    return f'<p class="legend">less probable with the store {steps} more probable &nbsp;·&nbsp; click a token</p>'


def token_detail(
    analysis: Analysis, scored: Scored, number: int, weight: str, choices: list[tuple[str, TokenChoice]]
) -> str:
    """Return one token in its context, with the probabilities of it and other candidates by LM, store and mixture."""
    before = "".join(analysis.pieces[max(0, number - _CONTEXT_PIECES) : number])
    rows = []
    for text, choice in choices:
        mine = " mine" if choice.token == int(analysis.ids[number]) else ""
        bars = "".join(
            f'<td class="bar {kind}"><div style="width:{100 * p:.2f}%"></div><span>{_percent(p)}</span></td>'
            for kind, p in (("lm", choice.lm), ("store", choice.store), ("mix", choice.mixture))
        )
        rows.append(f'<tr class="choice{mine}"><th>{_token(text)}</th>{bars}</tr>')
    return (
        f'<p class="where">… {escape(before)}<mark>{escape(analysis.pieces[number])}</mark></p>'
        '<table class="choices"><thead><tr><th></th><td>LM</td><td>store</td>'
        f"<td>both, {weight}</td></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f'<p class="note">ln p {scored.log_lm[number]:.2f} for the LM alone, '
        f"{scored.log_p[number]:.2f} with the store</p>"
    )


def neighbours(sources: list[WeighedNeighbour], target: str, k: int) -> str:
    """Return the nearest stored contexts, the token that followed each, and their documents."""
    if not sources:
        return '<p class="note">No neighbours: the prediction is that of the LM alone.</p>'
    items = []
    for source in sources:
        passage = source.passage
        agrees = " agrees" if passage.token == target else ""
        items.append(
            f'<li class="neighbour{agrees}"><div class="weight" style="--w:{source.weight:.4f}" '
            f'title="distance {source.distance:.2f}">{_percent(source.weight)}</div>'
            f"<p>… {escape(passage.before)}<mark>{escape(passage.token)}</mark>{escape(passage.after)} …"
            f"<cite>{escape(str(passage.document))}</cite></p></li>"
        )
    return (
        f"<h4>Nearest contexts in the store <small>({len(sources)} of {k:,}; each with its share of p from the store)"
        f'</small></h4><ol class="neighbours">{"".join(items)}</ol>'
    )


def written(prompt: str, tokens: list[WrittenToken], cited: list[Passage | None]) -> str:
    """Return a text being generated; the greener a token, the larger the store's share of its probability."""
    spans = []
    for token, passage in zip(tokens, cited, strict=True):
        source = f"; mostly from {passage.document}: … {passage.before}▸{passage.token}◂" if passage else ""
        title = f"{_percent(token.store_share)} from the store; p {_percent(token.p_lm)} → {_percent(token.p)}{source}"
        spans.append(
            f'<span class="tok owed" style="--s:{token.store_share:.3f}" title="{escape(title, quote=True)}">'
            f"{escape(token.text)}</span>"
        )
    return f'<div class="text written"><span class="prompt">{escape(prompt)}</span>{"".join(spans)}</div>'


def owed(attribution: Attribution) -> str:
    """Return the documents that contributed to the probability of the generated text."""
    rows = [(str(share.document), share.share) for share in attribution.documents[:_DOCUMENTS]]
    rest = attribution.store - sum(share for _, share in rows)
    if rest > 0.0005:
        rows.append((f"{len(attribution.documents) - len(rows):,} other documents", rest))
    rows.append(("the LM", attribution.lm))
    lines = [
        f'<tr class="choice"><th>{escape(name)}</th><td class="bar store"><div style="width:{100 * share:.2f}%"></div>'
        f"<span>{_percent(share)}</span></td></tr>"
        for name, share in rows
    ]
    return f'<h4>Sources of this text’s probability</h4><table class="choices owed">{"".join(lines)}</table>'


def _token(text: str) -> str:
    shown = escape(text).replace("\n", "↵").replace(" ", "<i>·</i>")
    return shown or "<i>(part of a character)</i>"


def _percent(p: float) -> str:
    if p >= 0.0995:
        return f"{p:.0%}"
    return f"{p:.1%}" if p >= 0.001 else f"{p:.2%}" if p >= 0.00005 else "0%"
