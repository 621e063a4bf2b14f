"""The final report of an exact-match memory."""

from pathlib import Path

from knnstore.cli.report.words import shown_store
from knnstore.sizes import format_size
from knnstore.suffix_array.build import SuffixReport


def suffixes_text(report: SuffixReport, root: Path) -> str:
    """Return the size of the memory and the next step."""
    each = report.bytes / report.rows
    lines = [f"suffixes  {report.rows:,} tokens, {format_size(report.bytes)}, {each:.1f} bytes per token"]
    if not report.built:
        lines[0] += "; already finished"
    shown = shown_store(root)
    lines.append(
        f"next      knnstore score --store {shown} --save-neighbours FILE, then knnstore tune FILE --store {shown}"
    )
    return "\n".join(lines)
