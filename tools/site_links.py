"""Hook for mkdocs: replace links to files outside docs/, which the site doesn't have."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]*)(#[^)]*)?\)")
_PAGES = {("README.md", "#when-not-to-use-it"): "when-not-to-use-it.md", ("README.md", ""): "index.md"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to the README to the page with its content; replace links to other files by their names."""
    return _OUTSIDE.sub(_inside, markdown)


def _inside(match: re.Match[str]) -> str:
    text, path, anchor = match[1], match[2], match[3] or ""
    page = _PAGES.get((path, anchor))
    return f"[{text}]({page})" if page else f"{text} (`{path}`)" if path not in text else text
