"""The final report of a verification."""

from knnstore.cli.report.words import shown_store
from knnstore.files import path_of
from knnstore.sizes import format_size
from knnstore.verification.check import VerifyReport
from knnstore.verification.damage import Damage, RepairSource

_MOST_LINES = 40
_WAYS: dict[RepairSource, str] = {
    "checksum": "one bit is wrong, and the checksum shows which",
    "plan": "from the records beside it",
    "keys": "from the segments' keys",
    "copy or LM": "from the index's copy of the same rows, or by the LM",
    "copy or corpus": "from the index's copy of the same rows, or from the corpus",
    "LM": "by the LM",
    "corpus": "from the corpus",
    "values": "from the stored tokens",
    "nothing": "",
}


def verify_text(report: VerifyReport) -> str:
    """Return every damaged file with its rows and how to rebuild it, and the next step."""
    lines = [damage_text(damage) for damage in report.damages[:_MOST_LINES]]
    if len(report.damages) > _MOST_LINES:
        lines.append(f"          … and {len(report.damages) - _MOST_LINES:,} more: --json lists all")
    state = "" if report.finished else "; the store isn't finished"
    if report.leftovers:
        state += f"; {len(report.leftovers)} leftovers of a killed run, used or removed by the next command"
    result = f"{len(report.damages):,} damaged" if report.damages else "all checksums match"
    lines.append(f"verify    {report.files:,} files, {format_size(report.bytes)}: {result}{state}")
    if report.damages:
        lines.append(f"next      knnstore repair --store {shown_store(path_of(report.store))}")
    return "\n".join(lines)


def damage_text(damage: Damage) -> str:
    """Return two lines about a damaged file."""
    rows = "" if damage.rows is None else f" (chunk {damage.chunk}, rows {damage.rows[0]:,} to {damage.rows[1]:,})"
    way = f"can be rebuilt {_WAYS[damage.source]}" if damage.rebuildable else "can't be rebuilt"
    if damage.source == "checksum":
        way = f"can be corrected: {_WAYS[damage.source]}"
    return f"damaged   {damage.path}{rows} {damage.problem}\n          {way}"
