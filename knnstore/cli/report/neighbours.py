"""Nearest contexts as text and as JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from knnstore.cli.report.words import marked, one_line, quoted, wrapped

if TYPE_CHECKING:
    from knnstore.api import Neighbour

_SHORTEST_WORD = 3


def neighbours_text(query: str, neighbours: Sequence[Neighbour], highlight: Callable[[str], str]) -> str:
    """Return each neighbour with its distance, document and passage; ``highlight`` styles the words of the query."""
    words = {word.lower() for word in re.findall(r"\w+", query) if len(word) >= _SHORTEST_WORD}
    lines = []
    for number, neighbour in enumerate(neighbours, 1):
        lines.append(f"{number:>3}{neighbour.distance:>10.2f}  {quoted(neighbour.token)}  {_source(neighbour)}")
        glue = " " if neighbour.passage.after[:1].isspace() else ""
        passage = f"{marked(neighbour.context, neighbour.token)}{glue}{one_line(neighbour.passage.after)}"
        # Styled after wrapping, because the control characters of a style have no width.
        lines += [
            re.sub(r"\w+", lambda word: highlight(word[0]) if word[0].lower() in words else word[0], line)
            for line in wrapped("", passage)
        ]
    return "\n".join(lines)


def neighbours_json(query: str, neighbours: Sequence[Neighbour]) -> dict[str, Any]:
    """Return the object that ``--json`` prints."""
    return {
        "query": query,
        "neighbours": [
            {
                "distance": neighbour.distance,
                "document": neighbour.document,
                "row": neighbour.passage.row,
                "context": neighbour.context,
                "token": neighbour.token,
                "token_id": neighbour.token_id,
                "after": neighbour.passage.after,
            }
            for neighbour in neighbours
        ],
    }


def _source(neighbour: Neighbour) -> str:
    return one_line(neighbour.document)
