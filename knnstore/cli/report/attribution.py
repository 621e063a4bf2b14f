"""The sources of a text's probability, as a table and as JSON."""

from typing import Any

from knnstore.attribution import Attribution, DocumentShare
from knnstore.cli.report.words import marked, one_line, wrapped

_SHOWN = 10
_PASSAGES = 3


def attribution_text(result: Attribution, shown: int = 0) -> str:
    """Return a table of the documents that contributed most, the rest and the LM, and the passages of the first few.

    At least ``shown`` documents have a row of their own.
    """
    lines = [f"{'tokens':>10}  {'share':>7}  source"]
    first, others = result.documents[: max(shown, _SHOWN)], result.documents[max(shown, _SHOWN) :]
    lines += [
        _line(document.tokens, document.share, f"[{number}] {one_line(str(document.document))}")
        for number, document in enumerate(first, 1)
    ]
    if others:
        tokens, share = sum(document.tokens for document in others), sum(document.share for document in others)
        lines.append(_line(tokens, share, f"{len(others):,} other document{'s' if len(others) > 1 else ''}"))
    earners = ((result.cache, "the text's own past"), (result.matches, "exact matches"), (result.lm, "the LM"))
    lines += [_line(share * result.tokens, share, name) for share, name in earners if share or name == "the LM"]
    lines.append(_line(result.tokens, 1.0, "total"))
    for number, document in enumerate(first[:_PASSAGES], 1):
        lines += ["", *wrapped(f"[{number}]", _passage(document))]
    return "\n".join(lines)


def attribution_json(result: Attribution) -> dict[str, Any]:
    """Return the object that ``--json`` prints."""
    return {
        "tokens": result.tokens,
        "store": result.store,
        "lm": result.lm,
        "cache": result.cache,
        "matches": result.matches,
        "documents": [
            {
                "document": str(document.document),
                "tokens": document.tokens,
                "share": document.share,
                "row": document.passage.row,
                "passage": document.passage.before,
                "token": document.passage.token,
            }
            for document in result.documents
        ],
    }


def _line(tokens: float, share: float, words: str) -> str:
    return f"{tokens:>10,.1f}  {100 * share:>5.1f} %  {words}"


def _passage(document: DocumentShare) -> str:
    return marked(document.passage.before, document.passage.token)
