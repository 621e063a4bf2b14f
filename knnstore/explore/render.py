"""What the page shows, as HTML. Every text that comes from a store, an LM or a person is escaped here."""

from html import escape

import numpy as np

from knnstore.attribution import Attribution
from knnstore.explore.analysis import Analysis, Scored, TokenChoice
from knnstore.explore.explorer import WeighedNeighbour
from knnstore.generation import WrittenToken
from knnstore.passages import Passage

# Nats at which a colour is full: a token e³ = 20 times as probable as it was for the LM.
_FULL = 3.0
_CONTEXT_PIECES = 24
_DOCUMENTS = 8


def heading(name: str, rows: int, model: str, layer: str) -> str:
    """Which store this is."""
    return f"<h1>{escape(name)}</h1><p>{rows:,} keys of {escape(model)}, {escape(layer)}</p>"


def numbers(scored: Scored, note: str) -> str:
    """The two perplexities and what lies between them."""
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
    """A remark."""
    return f'<p class="note">{escape(words)}</p>'


def tokens(analysis: Analysis, scored: Scored, selected: int | None) -> str:
    """The text, every token coloured by how much more (blue) or less (orange) probable the store made it."""
    gains = scored.log_p - scored.log_lm
    spans = []
    for number, (piece, gain) in enumerate(zip(analysis.pieces, gains, strict=True)):
        strength = min(abs(float(gain)) / _FULL, 1.0)
        colour = "up" if gain >= 0 else "down"
        chosen = " chosen" if number == selected else ""
        title = f"p {_percent(np.exp(scored.log_lm[number]))} → {_percent(np.exp(scored.log_p[number]))}"
        body = piece.lstrip(" ")
        text = escape(body).replace("\n", "<i>↵</i>\n") or "<i>·</i>"
        space = piece[: len(piece) - len(body)]  # outside of the colour, where a line may break
        spans.append(
            f'{space}<span class="tok {colour}{chosen}" data-i="{number}" tabindex="0" role="button" '
            f'title="{title}" style="--s:{strength:.3f}">{text}</span>'
        )
    return f'<div class="text">{"".join(spans)}</div>'


def legend() -> str:
    """What the colours mean."""
    steps = "".join(f'<span class="tok down" style="--s:{s}">&nbsp;</span>' for s in (1, 0.66, 0.33))
    steps += '<span class="tok up" style="--s:0">&nbsp;</span>'
    steps += "".join(f'<span class="tok up" style="--s:{s}">&nbsp;</span>' for s in (0.33, 0.66, 1))
    return f'<p class="legend">less probable with the store {steps} more probable &nbsp;·&nbsp; click a token</p>'


def token_detail(
    analysis: Analysis, scored: Scored, number: int, weight: str, choices: list[tuple[str, TokenChoice]]
) -> str:
    """One token: where it stands, what LM, store and mixture give it and its rivals, each with its text."""
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
        f'<p class="note">ln p {scored.log_lm[number]:.2f} by the LM, {scored.log_p[number]:.2f} with the store</p>'
    )


def neighbours(sources: list[WeighedNeighbour], target: str, k: int) -> str:
    """The nearest stored contexts, what followed each, and the document that it is from."""
    if not sources:
        return '<p class="note">No neighbour was found: the LM is on its own here.</p>'
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
        f"<h4>Nearest contexts in the store <small>({len(sources)} of {k:,}; each with its share of the store’s vote)"
        f'</small></h4><ol class="neighbours">{"".join(items)}</ol>'
    )


def written(prompt: str, tokens: list[WrittenToken], cited: list[Passage | None]) -> str:
    """A text in the making: the greener a token, the more of its probability came from the store."""
    spans = []
    for token, passage in zip(tokens, cited, strict=True):
        source = f"; most by {passage.document}: … {passage.before}▸{passage.token}◂" if passage else ""
        title = f"{_percent(token.store_share)} from the store; p {_percent(token.p_lm)} → {_percent(token.p)}{source}"
        spans.append(
            f'<span class="tok owed" style="--s:{token.store_share:.3f}" title="{escape(title, quote=True)}">'
            f"{escape(token.text)}</span>"
        )
    return f'<div class="text written"><span class="prompt">{escape(prompt)}</span>{"".join(spans)}</div>'


def owed(attribution: Attribution) -> str:
    """Which documents earned the probability of what was written."""
    rows = [(str(share.document), share.share) for share in attribution.documents[:_DOCUMENTS]]
    rest = attribution.store - sum(share for _, share in rows)
    if rest > 0.0005:
        rows.append((f"{len(attribution.documents) - len(rows):,} other documents", rest))
    rows.append(("the LM itself", attribution.lm))
    lines = [
        f'<tr class="choice"><th>{escape(name)}</th><td class="bar store"><div style="width:{100 * share:.2f}%"></div>'
        f"<span>{_percent(share)}</span></td></tr>"
        for name, share in rows
    ]
    return f'<h4>Who earned these words’ probability</h4><table class="choices owed">{"".join(lines)}</table>'


def _token(text: str) -> str:
    shown = escape(text).replace("\n", "↵").replace(" ", "<i>·</i>")
    return shown or "<i>(part of a character)</i>"


def _percent(p: float) -> str:
    if p >= 0.0995:
        return f"{p:.0%}"
    return f"{p:.1%}" if p >= 0.001 else f"{p:.2%}" if p >= 0.00005 else "0%"
