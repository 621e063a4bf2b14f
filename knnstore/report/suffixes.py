"""A finished exact-match memory as text."""

from pathlib import Path

from knnstore.report.words import shown_store
from knnstore.sizes import format_size
from knnstore.suffixes.build import SuffixReport


def suffixes_text(report: SuffixReport, root: Path) -> str:
    """How much was sorted, and the next step."""
    each = report.bytes / report.rows
    lines = [f"suffixes  {report.rows:,} tokens, {format_size(report.bytes)}, {each:.1f} bytes a token"]
    if not report.built:
        lines[0] += "; they were finished already"
    shown = shown_store(root)
    lines.append(
        f"next      knnstore score --store {shown} --save-neighbours FILE, then knnstore tune FILE --store {shown}"
    )
    return "\n".join(lines)
