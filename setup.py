"""The long description that a package index shows: the README without the pictures and links of the repository."""

import re
from pathlib import Path

_PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?://)[^)]*\)\n\n?", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?://|mailto:)[^)]*\)")


def without_relative_links(page: str) -> str:
    """A page of Markdown whose relative links are their text alone, and whose relative pictures are left out."""
    return _LINK.sub(r"\1", _PICTURE.sub("", page))


if __name__ == "__main__":
    from setuptools import setup

    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=without_relative_links(readme), long_description_content_type="text/markdown")
